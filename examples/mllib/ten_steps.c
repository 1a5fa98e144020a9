/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The ten steps of kernel-ml-lib's protocol from C, through the files that `uxk mount ROOT` serves: open, read, write.
 * Commands and events go through ROOT/dev/ml_lib, data and advice through ROOT/dev/mllibdev, with the structures of
 * ml_lib_uxk.h.  Usage: ten_steps ROOT
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ml_lib_uxk.h"

#define ROUNDS 8
#define TRIES 600

static const char *root;
static int library; /* ROOT/dev/ml_lib */
static __u32 model_id;

static void fail(const char *what)
{
	fprintf(stderr, "ten_steps: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int open_at(const char *path, int flags)
{
	char name[4096];
	int fd;

	snprintf(name, sizeof(name), "%s/%s", root, path);
	fd = open(name, flags);
	if (fd < 0)
		fail(name);
	return fd;
}

/* An attribute's text, without its newline. */
static const char *look(const char *path)
{
	static char text[4097];
	int fd = open_at(path, O_RDONLY);
	ssize_t size = read(fd, text, sizeof(text) - 1);

	if (size < 0)
		fail(path);
	close(fd);
	while (size > 0 && text[size - 1] == '\n')
		size--;
	text[size] = '\0';
	return text;
}

#define MODEL "sys/class/ml_lib_test/mllibdev/ml_model1/"

static long number(const char *path)
{
	return strtol(look(path), NULL, 10);
}

static void command(__u32 which)
{
	struct ml_lib_bpf_cmd_ctx context = { .model_id = model_id, .command = which };

	if (write(library, &context, sizeof(context)) != sizeof(context))
		fail("command");
}

/* Steps 2 to 4: one dataset, half of it at a time; its first byte. */
static int collect(int say)
{
	unsigned char data[1024];
	ssize_t first, rest;
	int device;

	command(ML_LIB_BPF_CMD_PREPARE_DATASET);
	if (say)
		printf("2 prepare_dataset: %s\n", look(MODEL "datasets/rows/state"));
	device = open_at("dev/mllibdev", O_RDONLY);
	first = read(device, data, 512);
	if (say)
		printf("3 read: %zd bytes, %s\n", first, look(MODEL "datasets/rows/state"));
	rest = read(device, data + 512, 512);
	if (first != 512 || rest != 512)
		fail("dev/mllibdev");
	if (say)
		printf("3 read: %zd bytes, %s\n", rest, look(MODEL "datasets/rows/state"));
	close(device);
	command(ML_LIB_BPF_CMD_DISCARD_DATASET);
	if (say)
		printf("4 discard_dataset: %s\n", look(MODEL "datasets/rows/state"));
	return data[0];
}

static int train(int say)
{
	int sum = 0;

	for (int round = 0; round < ROUNDS; round++)
		sum += collect(say && round == 0);
	return sum / ROUNDS;
}

/* Step 7: a hint with its header, one byte of payload, in force for an hour. */
static void advise(int level)
{
	struct {
		struct ml_lib_user_space_recommendation head;
		unsigned char payload;
	} hint;
	size_t size = sizeof(hint.head) + 1;
	int device = open_at("dev/mllibdev", O_WRONLY);

	memset(&hint, 0, sizeof(hint));
	hint.head.magic = ML_LIB_RECOMMENDATION_MAGIC;
	hint.head.flags = ML_LIB_RECOMMENDATION_STANDING;
	hint.head.ttl_ns = 3600000000000ull;
	hint.head.predicted = 500;
	hint.head.payload_size = 1;
	hint.payload = level;
	if (write(device, &hint, size) != (ssize_t)size)
		fail("advice");
	close(device);
}

static int follows(void)
{
	return strcmp(look(MODEL "mode"), "collaboration") == 0 || strcmp(look(MODEL "mode"), "recommendation") == 0;
}

static int pays(void)
{
	return number(MODEL "efficiency_ppm") > 0;
}

static int harms(void)
{
	return number(MODEL "efficiency_ppm") < 0 || strcmp(look(MODEL "mode"), "emergency") == 0;
}

static void until(int (*true_now)(void), const char *what)
{
	const struct timespec moment = { .tv_nsec = 100000000 };

	for (int tries = 0; !true_now(); tries++) {
		if (tries == TRIES) {
			fprintf(stderr, "ten_steps: still not: %s\n", what);
			exit(1);
		}
		nanosleep(&moment, NULL);
	}
}

/* What the ring of events has: how often each kind was told, and what was missed. */
static void events(void)
{
	struct ml_lib_user_space_notification news[64];
	unsigned long counts[32] = { 0 }, dropped = 0;
	int fd = open_at("dev/ml_lib", O_RDONLY | O_NONBLOCK);
	ssize_t size;

	while ((size = read(fd, news, sizeof(news))) > 0)
		for (size_t n = 0; n < size / sizeof(news[0]); n++) {
			if (news[n].type < 32 && news[n].model_id == model_id)
				counts[news[n].type]++;
			dropped = news[n].dropped;
		}
	if (size < 0 && errno != EAGAIN)
		fail("dev/ml_lib");
	close(fd);
	printf("events: registered %lu, states %s, datasets %s, modes %s, dropped %lu\n",
	       counts[ML_LIB_BPF_EVENT_MODEL_REGISTERED], counts[ML_LIB_BPF_EVENT_STATE_CHANGE] ? "yes" : "no",
	       counts[ML_LIB_BPF_EVENT_DATASET_UPDATE] ? "yes" : "no",
	       counts[ML_LIB_BPF_EVENT_MODE_CHANGE] ? "yes" : "no", dropped);
}

int main(int argc, char **argv)
{
	int level, fd;

	if (argc != 2) {
		fprintf(stderr, "usage: ten_steps ROOT\n");
		return 2;
	}
	root = argv[1];
	library = open_at("dev/ml_lib", O_WRONLY);
	model_id = number(MODEL "model_id");

	command(ML_LIB_BPF_CMD_START);
	printf("1 start: %s", look(MODEL "state"));
	printf(", mode %s\n", look(MODEL "mode"));
	level = train(1);
	printf("5 trained on %d datasets\n6 the level is about %d\n", ROUNDS, level);
	advise(level);
	printf("7 advice was taken in: %ld\n", number(MODEL "hints_received"));
	until(follows, "at least half of the units follow");
	printf("8 the subsystem follows it: at least half of its units\n");
	until(pays, "efficiency above 0");
	printf("9 efficiency is above 0\n");

	fd = open_at("sys/module/mllibdev/parameters/level", O_WRONLY);
	if (write(fd, "160", 3) != 3)
		fail("level");
	close(fd);
	until(harms, "efficiency below 0");
	printf("10 the level has moved, efficiency has degraded\n");
	level = train(0);
	advise(level);
	until(pays, "efficiency above 0 again");
	until(follows, "at least half of the units follow again");
	printf("10 corrected to %d: efficiency is above 0 again\n", level);
	events();
	command(ML_LIB_BPF_CMD_STOP);
	close(library);
	return 0;
}
