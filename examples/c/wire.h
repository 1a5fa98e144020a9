/* The wire protocol of uxk in C (docs/wire-protocol.md): MessagePack, messages, and memory of the kernel's.
 *
 * Include it once.  No length in a message is believed: what leads beyond its end ends the process, with a reason. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { START = 1, TURN, SETTLE, STOP, MAPPED, REFUSE, CHECKPOINT = 8, HELLO = 64, OUT, MAP = 67, SAVED = 69 };
enum { REQUEST = 1, PING = 3, COMPLETION = 16, PONG, READY = 33, ALLOCATE = 38, ADD_DEVICE = 48 };
enum { BOOL = 0xc2, BIN = 0xc6, UINT = 0xcf, STR = 0xdb, ARRAY = 0xdd, TABLE = 0xdf };
enum { MESSAGE_MAX = 4 << 20, FRAME_FULL = 512 << 10 };

static void die(const char *why)
{
    fprintf(stderr, "%s\n", why); /* the kernel shows it in its report of the death */
    exit(1);
}

/* --- MessagePack, as much of it as the protocol uses --- */

struct out { uint8_t *data; size_t length, room, count; };
struct in { const uint8_t *at, *end; };

static uint8_t *grow(struct out *out, size_t bytes)
{
    out->length += bytes;
    if (out->length > out->room && !(out->data = realloc(out->data, out->room = 2 * out->length)))
        die("no memory");
    return out->data + out->length - bytes;
}

static void put_number(struct out *out, uint8_t kind, uint64_t value, int bytes) /* big-endian, behind its kind */
{
    uint8_t *p = grow(out, 1 + bytes);
    for (*p = kind; bytes; value >>= 8)
        p[bytes--] = (uint8_t)value;
}

static void put_byte(struct out *out, uint8_t byte) { *grow(out, 1) = byte; }
static void put_uint(struct out *out, uint64_t value) { put_number(out, UINT, value, 8); }
static void put_array(struct out *out, uint8_t length) { put_byte(out, 0x90 | length); } /* at most 15 */
static void put_bool(struct out *out, int value) { put_byte(out, value ? 0xc3 : 0xc2); }

static void put_bytes(struct out *out, uint8_t kind, const void *data, size_t length)
{
    put_number(out, kind, length, 4);
    if (length)
        memcpy(grow(out, length), data, length);
}

static void put_text(struct out *out, const char *text) { put_bytes(out, STR, text, strlen(text)); }

/* The head of any value: its kind, as the first byte of the widest form, and its number or length. */
static uint8_t get(struct in *in, uint64_t *number)
{
    static const uint8_t kinds[] = { 0xc0, 0, BOOL, BOOL, BIN, BIN, BIN, 0, 0, 0, 0, 0, UINT, UINT, UINT, UINT,
        0xd3, 0xd3, 0xd3, 0xd3, 0, 0, 0, 0, 0, STR, STR, STR, ARRAY, ARRAY, TABLE, TABLE };
    static const uint8_t sizes[] = { 0, 0, 0, 0, 1, 2, 4, 0, 0, 0, 0, 0, 1, 2, 4, 8,
        1, 2, 4, 8, 0, 0, 0, 0, 0, 1, 2, 4, 2, 4, 2, 4 };
    if (in->at == in->end)
        die("a message that ends too early");
    uint8_t byte = *in->at++, kind;
    int bytes = 0;
    if (byte < 0xc0) {
        kind = byte < 0x80 ? UINT : byte < 0x90 ? TABLE : byte < 0xa0 ? ARRAY : STR;
        *number = byte & (byte < 0x80 ? 0x7f : byte < 0xa0 ? 0x0f : 0x1f);
    } else {
        kind = byte < 0xe0 ? kinds[byte - 0xc0] : 0xd3;
        bytes = byte < 0xe0 ? sizes[byte - 0xc0] : 0;
        *number = byte == 0xc3;
    }
    if (!kind || in->end - in->at < bytes)
        die("a value that the protocol does not have, or that is cut off");
    while (bytes--)
        *number = *number << 8 | *in->at++;
    if ((kind == BIN || kind >= STR) && *number > (uint64_t)(in->end - in->at))
        die("a length that leads beyond the end of its message"); /* every item of an array takes a byte */
    return kind;
}

static uint64_t get_a(struct in *in, uint8_t kind)
{
    uint64_t number;
    if (get(in, &number) != kind)
        die("a value of another kind than the protocol says");
    return number;
}

static struct in get_bytes(struct in *in, uint8_t kind)
{
    uint64_t length = get_a(in, kind);
    in->at += length;
    return (struct in){ in->at - length, in->at };
}

static void skip(struct in *in, uint64_t values) /* without recursion: how deep it goes is the peer's to choose */
{
    for (uint64_t number; values; values--) {
        uint8_t kind = get(in, &number);
        in->at += kind == BIN || kind == STR ? number : 0;
        values += kind == ARRAY ? number : kind == TABLE ? 2 * number : 0;
    }
}

/* --- the connection --- */

struct message { struct message *next; struct in body; uint64_t kind; uint8_t data[]; };

static int sock, descriptor = -1; /* the latter came with the message that was read last */
static struct message *waiting, **last = &waiting;
static struct out replies, up; /* frames being made: five bytes for the head of an array, then entries */
static uint64_t answered;

static void receive(uint8_t *to, size_t length)
{
    union { struct cmsghdr head; char room[CMSG_SPACE(sizeof descriptor)]; } extra;
    while (length) {
        struct iovec part = { to, length };
        struct msghdr head = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &extra };
        head.msg_controllen = sizeof extra;
        ssize_t count = recvmsg(sock, &head, MSG_CMSG_CLOEXEC);
        if (count <= 0)
            exit(count < 0); /* 0: the kernel has hung up */
        if (head.msg_controllen && extra.head.cmsg_type == SCM_RIGHTS)
            memcpy(&descriptor, CMSG_DATA(&extra.head), sizeof descriptor);
        to += count, length -= (size_t)count;
    }
}

static struct message *next_message(uint64_t wanted) /* 0: any, those first that came while another was wanted */
{
    for (struct message *found = waiting;; last = &found->next, *last = NULL) {
        uint8_t head[4];
        if (!wanted && found) {
            if (!(waiting = found->next))
                last = &waiting;
            return found;
        }
        receive(head, sizeof head);
        uint32_t length = head[0] | head[1] << 8 | head[2] << 16 | (uint32_t)head[3] << 24;
        if (length > MESSAGE_MAX || !(found = malloc(sizeof *found + length)))
            die("a message longer than any may be");
        receive(found->data, length);
        found->body = (struct in){ found->data, found->data + length };
        get_a(&found->body, ARRAY);
        found->kind = get_a(&found->body, UINT);
        if (!wanted || found->kind == wanted)
            return found;
        *last = found;
    }
}

static void send_message(struct out *out) /* which begins with four bytes for its length */
{
    for (int i = 0; i < 4; i++)
        out->data[i] = (uint8_t)((out->length - 4) >> 8 * i);
    for (size_t at = 0; at < out->length;) {
        ssize_t count = send(sock, out->data + at, out->length - at, MSG_NOSIGNAL);
        if (count < 0)
            exit(1);
        at += (size_t)count;
    }
    out->length = 0;
}

static struct out *entry(struct out *frame, uint64_t tag, uint8_t fields) /* begins one in a frame */
{
    if (!frame->length)
        grow(frame, 5);
    frame->count++;
    put_array(frame, 1 + fields), put_uint(frame, tag);
    return frame;
}

static void put_frames(struct out *out, struct out *frame) /* one, or none */
{
    put_array(out, frame->count > 0);
    if (frame->count) {
        for (int i = 1; i < 5; i++)
            frame->data[i] = (uint8_t)(frame->count >> 8 * (4 - i));
        frame->data[0] = ARRAY;
        put_array(out, 2), put_bytes(out, BIN, frame->data, frame->length), put_uint(out, frame->count);
    }
    frame->length = frame->count = 0;
}

static void answer(int more)
{
    static struct out out;
    static uint64_t told_ns; /* of processor time */
    struct timespec cpu;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    uint64_t cpu_ns = (uint64_t)cpu.tv_sec * 1000000000 + (uint64_t)cpu.tv_nsec;
    grow(&out, 4), put_array(&out, 10), put_uint(&out, OUT), put_uint(&out, answered);
    put_frames(&out, &replies), put_frames(&out, &up);
    put_byte(&out, 0xc0), put_bool(&out, 0), put_uint(&out, more ? 0 : cpu_ns - told_ns); /* it sets no timer, */
    put_bool(&out, 0), put_bool(&out, 0), put_bool(&out, more); /* and has no tasks */
    send_message(&out);
    told_ns = more ? told_ns : cpu_ns;
    answered += !more;
}

static void no_state(void) /* the answer to CHECKPOINT of who keeps all that matters in memory of the kernel's */
{
    static struct out out;
    grow(&out, 4), put_array(&out, 5), put_uint(&out, SAVED), put_uint(&out, answered++);
    put_byte(&out, 0xc0), put_bytes(&out, BIN, "", 0), put_text(&out, "");
    send_message(&out);
}

/* --- memory of the kernel's --- */

struct view { uint8_t *base, *data; uint64_t length; };

static int map(uint64_t cap, int writable, struct view *view) /* 0 or an errno */
{
    static struct out out;
    grow(&out, 4), put_array(&out, 3), put_uint(&out, MAP), put_uint(&out, cap), put_bool(&out, writable);
    send_message(&out);
    struct message *mapped = next_message(MAPPED);
    struct in *in = &mapped->body;
    skip(in, 1);
    view->length = get_a(in, UINT);
    uint64_t offset = get_a(in, UINT);
    skip(in, 1);
    int status = (int)get_a(in, UINT);
    free(mapped);
    *view = (struct view){ .length = view->length };
    if (status || descriptor < 0)
        return status ? status : EIO;
    view->base = mmap(NULL, offset + view->length, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, descriptor, 0);
    status = view->base == MAP_FAILED ? errno : 0;
    view->data = view->base + offset;
    close(descriptor), descriptor = -1;
    return status;
}

static void unmap(struct view *view)
{
    if (view->base && view->base != MAP_FAILED)
        munmap(view->base, view->length + (size_t)(view->data - view->base));
}

static void hello(const char *runtime) /* the first word; the answer is START, or REFUSE */
{
    struct out out = { 0 };
    const char *number = getenv("UXK_FD");
    if (!number)
        die("no UXK_FD: this program is started by uxk, with: uxk insmod FILE.toml");
    sock = atoi(number);
    grow(&out, 4), put_array(&out, 5), put_uint(&out, HELLO), put_text(&out, "uxk");
    put_uint(&out, 1), put_uint(&out, 1), put_text(&out, runtime); /* versions from, to */
    send_message(&out);
    free(out.data);
}
