/* A RAM disk in C, a block driver for uxk (docs/wire-protocol.md): cc -O2 -o ramdisk ramdisk.c
 *
 * Its medium is memory of the kernel's: when this process dies, the next one finds the data as they were. */
#include "wire.h"

enum { NOP, READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES };
enum { TRANSFER_MAX = 128 << 10, CID_MEDIUM = 1, CID_DEVICE };

static struct view medium;
static uint64_t size;
static char device[64], digits[24];

/* --- requests --- */

static int move(uint64_t op, uint8_t *disk, uint64_t length, struct in inside, uint64_t region, uint64_t at)
{
    struct view lent = { 0 };
    if (length > TRANSFER_MAX)
        return EINVAL;
    if (!region) { /* the data are in the entry: a READ's are put there by complete() */
        if (op == WRITE && (uint64_t)(inside.end - inside.at) != length)
            return EINVAL;
        if (op == WRITE && length)
            memcpy(disk, inside.at, length);
        return 0;
    }
    int status = map(region, op == READ, &lent);
    if (!status && (at > lent.length || length > lent.length - at))
        status = EINVAL;
    if (!status)
        memcpy(op == READ ? lent.data + at : disk, op == READ ? disk : lent.data + at, length);
    unmap(&lent);
    return status;
}

static void serve(struct in *in)
{
    uint64_t cid = get_a(in, UINT), op = get_a(in, UINT);
    struct in inside = get_bytes(in, BIN);
    uint64_t offset = get_a(in, UINT), length = get_a(in, UINT), region = get_a(in, UINT);
    skip(in, 2); /* port, device */
    uint64_t at = get_a(in, UINT);
    int status = 0;
    skip(in, 1); /* flags: all that is written is as durable as it gets */
    uint8_t *disk = medium.data;
    if (!disk || offset > size || length > size - offset)
        status = EINVAL;
    else if ((disk += offset), op == READ || op == WRITE)
        status = move(op, disk, length, inside, region, at);
    else if (op == DISCARD || op == WRITE_ZEROES)
        memset(disk, 0, length);
    else if (op != FLUSH && op != NOP)
        status = EOPNOTSUPP;
    struct out *out = entry(&replies, COMPLETION, 4);
    put_uint(out, cid), put_uint(out, (uint64_t)status), put_uint(out, status ? 0 : length);
    put_bytes(out, BIN, disk, op == READ && !region && !status ? length : 0);
    if (replies.length > FRAME_FULL)
        answer(1);
}

/* --- what the kernel grants --- */

static void attach(uint64_t cap)
{
    if (map(cap, 1, &medium) || medium.length < size)
        die("no access to the medium");
    struct out *out = entry(&up, ADD_DEVICE, 3);
    put_uint(out, CID_DEVICE), put_text(out, device);
    put_byte(out, 0x80 | 2); /* a table of two */
    put_text(out, "capacity_bytes"), put_text(out, digits);
    put_text(out, "max_discard_bytes"), put_text(out, "1073741824");
    entry(&up, READY, 0);
}

static void granted(struct in *in)
{
    uint64_t cid = get_a(in, UINT), status = get_a(in, UINT), result;
    get(in, &result);
    skip(in, 1);
    if (status)
        die(cid == CID_MEDIUM ? "no memory for the medium" : "no device");
    if (cid == CID_MEDIUM)
        attach(result);
}

/* --- messages --- */

static void frames(struct in *in)
{
    for (uint64_t count = get_a(in, ARRAY); count; count--) {
        struct in frame = get_bytes(in, BIN);
        for (uint64_t entries = get_a(&frame, ARRAY); entries; entries--) {
            uint64_t fields = get_a(&frame, ARRAY), tag = get_a(&frame, UINT);
            if (tag == REQUEST && fields == 11)
                serve(&frame);
            else if (tag == COMPLETION && fields == 5)
                granted(&frame);
            else if (tag == PING && fields == 2)
                put_uint(entry(&replies, PONG, 1), get_a(&frame, UINT));
            else
                skip(&frame, fields - 1); /* events are not for us */
        }
    }
}

static void start(struct in *in)
{
    if (get_a(in, UINT) != 1)
        die("a version of the protocol that nobody asked for");
    skip(in, 5); /* name, instance, seed, depth, time */
    struct in params = get_bytes(in, BIN), name = get_bytes(in, STR);
    snprintf(device, sizeof device, "%.*s", (int)(name.end - name.at), (const char *)name.at);
    for (uint64_t count = get_a(&params, TABLE); count; count--) {
        struct in key = get_bytes(&params, STR);
        if (key.end - key.at == 4 && !memcmp(key.at, "size", 4))
            size = get_a(&params, UINT);
        else
            skip(&params, 1);
    }
    snprintf(digits, sizeof digits, "%llu", (unsigned long long)size);
    struct out *out = entry(&up, ALLOCATE, 3);
    put_uint(out, CID_MEDIUM), put_uint(out, size), put_text(out, "medium"); /* kept under this name */
}

int main(void)
{
    for (hello("ramdisk.c");;) {
        struct message *message = next_message(0);
        struct in *in = &message->body;
        uint64_t kind = message->kind;
        int silent = 0;
        if (kind == START)
            start(in);
        else if (kind == TURN) {
            skip(in, 1);
            frames(in), frames(in);
            silent = (int)get_a(in, BOOL); /* the rest of the turn is still to come */
        } else if (kind == CHECKPOINT)
            no_state(), silent = 1;
        else if (kind == REFUSE)
            die("the kernel refuses");
        else if (kind != SETTLE && kind != STOP)
            silent = 1; /* UNMAP: it maps what requests lend anew each time; its own medium stays where it is */
        free(message);
        if (!silent)
            answer(0);
    }
}
