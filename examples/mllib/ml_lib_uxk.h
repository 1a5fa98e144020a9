/* SPDX-License-Identifier: Apache-2.0 */
/* Names and values of kernel-ml-lib, and uxk's proposals for what it leaves empty. */
/* Made by uxk.uapi.mllibabi.c_header(); see docs/kernel-ml-lib.md. */
#ifndef UXK_ML_LIB_H
#define UXK_ML_LIB_H

#include <stddef.h>
#include <linux/types.h>

enum ml_lib_system_mode { ML_LIB_UNKNOWN_MODE = 0, ML_LIB_EMERGENCY_MODE = 1, ML_LIB_LEARNING_MODE = 2, ML_LIB_COLLABORATION_MODE = 3, ML_LIB_RECOMMENDATION_MODE = 4, ML_LIB_MODE_MAX = 5 };
enum ml_lib_model_state { ML_LIB_UNKNOWN_MODEL_STATE = 0, ML_LIB_MODEL_CREATED = 1, ML_LIB_MODEL_INITIALIZED = 2, ML_LIB_MODEL_STARTED = 3, ML_LIB_MODEL_RUNNING = 4, ML_LIB_MODEL_STOPPED = 5, ML_LIB_MODEL_SHUTTING_DOWN = 6, ML_LIB_MODEL_STATE_MAX = 7 };
enum ml_lib_subsystem_state { ML_LIB_UNKNOWN_SUBSYSTEM_STATE = 0, ML_LIB_SUBSYSTEM_CREATED = 1, ML_LIB_SUBSYSTEM_INITIALIZED = 2, ML_LIB_SUBSYSTEM_STARTED = 3, ML_LIB_SUBSYSTEM_RUNNING = 4, ML_LIB_SUBSYSTEM_SHUTTING_DOWN = 5, ML_LIB_SUBSYSTEM_STOPPED = 6, ML_LIB_SUBSYSTEM_STATE_MAX = 7 };
enum ml_lib_subsystem_type { ML_LIB_UNKNOWN_SUBSYSTEM_TYPE = 0, ML_LIB_GENERIC_SUBSYSTEM = 1, ML_LIB_SPECIALIZED_SUBSYSTEM = 2, ML_LIB_SUBSYSTEM_TYPE_MAX = 3 };
enum ml_lib_dataset_type { ML_LIB_UNKNOWN_DATASET_TYPE = 0, ML_LIB_EMPTY_DATASET = 1, ML_LIB_VALUE_DATASET = 2, ML_LIB_STRUCTURE_DATASET = 3, ML_LIB_MEMORY_STREAM_DATASET = 4, ML_LIB_DATASET_TYPE_MAX = 5 };
enum ml_lib_dataset_state { ML_LIB_UNKNOWN_DATASET_STATE = 0, ML_LIB_DATASET_ALLOCATED = 1, ML_LIB_DATASET_CLEAN = 2, ML_LIB_DATASET_EXTRACTED_PARTIALLY = 3, ML_LIB_DATASET_EXTRACTED_COMPLETELY = 4, ML_LIB_DATASET_OBSOLETE = 5, ML_LIB_DATASET_EXTRACTION_FAILURE = 6, ML_LIB_DATASET_CORRUPTED = 7, ML_LIB_DATASET_STATE_MAX = 8 };
enum ml_lib_request_config_type { ML_LIB_UNKNOWN_REQUEST_CONFIG_TYPE = 0, ML_LIB_EMPTY_REQUEST_CONFIG = 1, ML_LIB_REQUEST_CONFIG_TYPE_MAX = 2 };
enum ml_lib_request_config_state { ML_LIB_UNKNOWN_REQUEST_CONFIG_STATE = 0, ML_LIB_REQUEST_CONFIG_ALLOCATED = 1, ML_LIB_REQUEST_CONFIG_INITIALIZED = 2, ML_LIB_REQUEST_CONFIG_STATE_MAX = 3 };
enum ml_lib_bpf_command { ML_LIB_BPF_CMD_NOP = 0, ML_LIB_BPF_CMD_START = 1, ML_LIB_BPF_CMD_STOP = 2, ML_LIB_BPF_CMD_PREPARE_DATASET = 3, ML_LIB_BPF_CMD_DISCARD_DATASET = 4 };
enum ml_lib_bpf_event_type { ML_LIB_BPF_EVENT_MODEL_REGISTERED = 1, ML_LIB_BPF_EVENT_MODEL_UNREGISTERED = 2, ML_LIB_BPF_EVENT_STATE_CHANGE = 3, ML_LIB_BPF_EVENT_DATASET_UPDATE = 4, ML_LIB_BPF_EVENT_TEST_DEV_ACCESS = 5, ML_LIB_BPF_EVENT_TEST_DEV_IO = 6, ML_LIB_BPF_EVENT_MODE_CHANGE = 16 };

#define ML_LIB_TEST_DEV_IOCGETFEEDBACK 0x80384d11u
#define ML_LIB_TEST_DEV_IOCGETMODELID 0x80044d03u
#define ML_LIB_TEST_DEV_IOCGETSIZE 0x80044d01u
#define ML_LIB_TEST_DEV_IOCGETSTATS 0x80284d10u
#define ML_LIB_TEST_DEV_IOCRESET 0x4d00u
#define ML_LIB_TEST_DEV_IOCSETSIZE 0x40044d02u
#define ML_LIB_REQUEST_MAGIC 0x51524c4du
#define ML_LIB_RECOMMENDATION_MAGIC 0x43524c4du
#define ML_LIB_RECOMMENDATION_STANDING 0x1u

/* A command for a model. */
struct ml_lib_bpf_cmd_ctx {
	__u32 model_id;
	__u32 command;
};
_Static_assert(sizeof(struct ml_lib_bpf_cmd_ctx) == 8, "size");
_Static_assert(offsetof(struct ml_lib_bpf_cmd_ctx, model_id) == 0, "model_id");
_Static_assert(offsetof(struct ml_lib_bpf_cmd_ctx, command) == 4, "command");

/* A model, and the first of its datasets. */
struct ml_lib_bpf_model_info {
	__u32 model_id;
	__u32 mode;
	__u32 state;
	__u32 dataset_type;
	__u32 dataset_state;
	char subsystem_name[64];
	char model_name[64];
};
_Static_assert(sizeof(struct ml_lib_bpf_model_info) == 148, "size");
_Static_assert(offsetof(struct ml_lib_bpf_model_info, model_id) == 0, "model_id");
_Static_assert(offsetof(struct ml_lib_bpf_model_info, mode) == 4, "mode");
_Static_assert(offsetof(struct ml_lib_bpf_model_info, state) == 8, "state");
_Static_assert(offsetof(struct ml_lib_bpf_model_info, dataset_type) == 12, "dataset_type");
_Static_assert(offsetof(struct ml_lib_bpf_model_info, dataset_state) == 16, "dataset_state");
_Static_assert(offsetof(struct ml_lib_bpf_model_info, subsystem_name) == 20, "subsystem_name");
_Static_assert(offsetof(struct ml_lib_bpf_model_info, model_name) == 84, "model_name");

/* What happened to a model; the timestamp is the kernel's, in ns. */
struct ml_lib_bpf_event {
	__u32 type;
	__u32 model_id;
	__u32 old_value;
	__u32 new_value;
	__s32 error;
	__u32 reserved;
	__u64 timestamp;
};
_Static_assert(sizeof(struct ml_lib_bpf_event) == 32, "size");
_Static_assert(offsetof(struct ml_lib_bpf_event, type) == 0, "type");
_Static_assert(offsetof(struct ml_lib_bpf_event, model_id) == 4, "model_id");
_Static_assert(offsetof(struct ml_lib_bpf_event, old_value) == 8, "old_value");
_Static_assert(offsetof(struct ml_lib_bpf_event, new_value) == 12, "new_value");
_Static_assert(offsetof(struct ml_lib_bpf_event, error) == 16, "error");
_Static_assert(offsetof(struct ml_lib_bpf_event, reserved) == 20, "reserved");
_Static_assert(offsetof(struct ml_lib_bpf_event, timestamp) == 24, "timestamp");

/* Counters of the test device. */
struct ml_lib_bpf_test_dev_stats {
	__u64 buffer_size;
	__u64 data_size;
	__u64 access_count;
	__u64 read_count;
	__u64 write_count;
};
_Static_assert(sizeof(struct ml_lib_bpf_test_dev_stats) == 40, "size");
_Static_assert(offsetof(struct ml_lib_bpf_test_dev_stats, buffer_size) == 0, "buffer_size");
_Static_assert(offsetof(struct ml_lib_bpf_test_dev_stats, data_size) == 8, "data_size");
_Static_assert(offsetof(struct ml_lib_bpf_test_dev_stats, access_count) == 16, "access_count");
_Static_assert(offsetof(struct ml_lib_bpf_test_dev_stats, read_count) == 24, "read_count");
_Static_assert(offsetof(struct ml_lib_bpf_test_dev_stats, write_count) == 32, "write_count");

/* uxk proposal: A dataset's descriptor; sizes and offsets in bytes. */
struct ml_lib_dataset {
	__u32 type;
	__u32 state;
	__u64 allocated_size;
	__u64 portion_offset;
	__u32 portion_size;
	__u32 reserved;
};
_Static_assert(sizeof(struct ml_lib_dataset) == 32, "size");
_Static_assert(offsetof(struct ml_lib_dataset, type) == 0, "type");
_Static_assert(offsetof(struct ml_lib_dataset, state) == 4, "state");
_Static_assert(offsetof(struct ml_lib_dataset, allocated_size) == 8, "allocated_size");
_Static_assert(offsetof(struct ml_lib_dataset, portion_offset) == 16, "portion_offset");
_Static_assert(offsetof(struct ml_lib_dataset, portion_size) == 24, "portion_size");
_Static_assert(offsetof(struct ml_lib_dataset, reserved) == 28, "reserved");

/* uxk proposal: User space asks for something: a command, for one dataset if it is named. */
struct ml_lib_user_space_request {
	__u32 magic;
	__u32 model_id;
	__u32 command;
	__u32 portion_size;
	__u64 portion_offset;
	char dataset_name[64];
};
_Static_assert(sizeof(struct ml_lib_user_space_request) == 88, "size");
_Static_assert(offsetof(struct ml_lib_user_space_request, magic) == 0, "magic");
_Static_assert(offsetof(struct ml_lib_user_space_request, model_id) == 4, "model_id");
_Static_assert(offsetof(struct ml_lib_user_space_request, command) == 8, "command");
_Static_assert(offsetof(struct ml_lib_user_space_request, portion_size) == 12, "portion_size");
_Static_assert(offsetof(struct ml_lib_user_space_request, portion_offset) == 16, "portion_offset");
_Static_assert(offsetof(struct ml_lib_user_space_request, dataset_name) == 24, "dataset_name");

/* uxk proposal: The kernel tells of an event: its number from 0, and how many before it this reader has missed. */
struct ml_lib_user_space_notification {
	__u32 type;
	__u32 model_id;
	__u32 old_value;
	__u32 new_value;
	__s32 error;
	__u32 reserved;
	__u64 timestamp;
	__u64 sequence;
	__u64 dropped;
};
_Static_assert(sizeof(struct ml_lib_user_space_notification) == 48, "size");
_Static_assert(offsetof(struct ml_lib_user_space_notification, type) == 0, "type");
_Static_assert(offsetof(struct ml_lib_user_space_notification, model_id) == 4, "model_id");
_Static_assert(offsetof(struct ml_lib_user_space_notification, old_value) == 8, "old_value");
_Static_assert(offsetof(struct ml_lib_user_space_notification, new_value) == 12, "new_value");
_Static_assert(offsetof(struct ml_lib_user_space_notification, error) == 16, "error");
_Static_assert(offsetof(struct ml_lib_user_space_notification, reserved) == 20, "reserved");
_Static_assert(offsetof(struct ml_lib_user_space_notification, timestamp) == 24, "timestamp");
_Static_assert(offsetof(struct ml_lib_user_space_notification, sequence) == 32, "sequence");
_Static_assert(offsetof(struct ml_lib_user_space_notification, dropped) == 40, "dropped");

/* uxk proposal: A hint; payload_size bytes in the subsystem's own format follow. */
struct ml_lib_user_space_recommendation {
	__u32 magic;
	__u32 flags;
	__u64 generation;
	__u64 ttl_ns;
	__u64 dataset_id;
	__u64 dataset_generation;
	__s64 predicted;
	__u32 payload_size;
	__u32 reserved;
};
_Static_assert(sizeof(struct ml_lib_user_space_recommendation) == 56, "size");
_Static_assert(offsetof(struct ml_lib_user_space_recommendation, magic) == 0, "magic");
_Static_assert(offsetof(struct ml_lib_user_space_recommendation, flags) == 4, "flags");
_Static_assert(offsetof(struct ml_lib_user_space_recommendation, generation) == 8, "generation");
_Static_assert(offsetof(struct ml_lib_user_space_recommendation, ttl_ns) == 16, "ttl_ns");
_Static_assert(offsetof(struct ml_lib_user_space_recommendation, dataset_id) == 24, "dataset_id");
_Static_assert(offsetof(struct ml_lib_user_space_recommendation, dataset_generation) == 32, "dataset_generation");
_Static_assert(offsetof(struct ml_lib_user_space_recommendation, predicted) == 40, "predicted");
_Static_assert(offsetof(struct ml_lib_user_space_recommendation, payload_size) == 48, "payload_size");
_Static_assert(offsetof(struct ml_lib_user_space_recommendation, reserved) == 52, "reserved");

/* uxk proposal: What became of a hint: status 0, applied; 1, refused. */
struct ml_lib_backpropagation_feedback {
	__u64 hint;
	__s64 predicted;
	__s64 outcome;
	__s64 baseline;
	__u64 dataset_id;
	__u64 dataset_generation;
	__u32 status;
	__u32 reserved;
};
_Static_assert(sizeof(struct ml_lib_backpropagation_feedback) == 56, "size");
_Static_assert(offsetof(struct ml_lib_backpropagation_feedback, hint) == 0, "hint");
_Static_assert(offsetof(struct ml_lib_backpropagation_feedback, predicted) == 8, "predicted");
_Static_assert(offsetof(struct ml_lib_backpropagation_feedback, outcome) == 16, "outcome");
_Static_assert(offsetof(struct ml_lib_backpropagation_feedback, baseline) == 24, "baseline");
_Static_assert(offsetof(struct ml_lib_backpropagation_feedback, dataset_id) == 32, "dataset_id");
_Static_assert(offsetof(struct ml_lib_backpropagation_feedback, dataset_generation) == 40, "dataset_generation");
_Static_assert(offsetof(struct ml_lib_backpropagation_feedback, status) == 48, "status");
_Static_assert(offsetof(struct ml_lib_backpropagation_feedback, reserved) == 52, "reserved");

/* uxk proposal: Efficiency after an epoch: what both arms did in it (0: nothing), and the sums. */
struct ml_lib_efficiency {
	__u32 model_id;
	__u32 mode;
	__u64 epoch;
	__u64 default_kpi;
	__u64 hinted_kpi;
	__u64 weight;
	__u64 hinted_weight;
	__s64 efficiency_ppm;
	__s64 saved_ppm;
	__s64 loss_ppm;
};
_Static_assert(sizeof(struct ml_lib_efficiency) == 72, "size");
_Static_assert(offsetof(struct ml_lib_efficiency, model_id) == 0, "model_id");
_Static_assert(offsetof(struct ml_lib_efficiency, mode) == 4, "mode");
_Static_assert(offsetof(struct ml_lib_efficiency, epoch) == 8, "epoch");
_Static_assert(offsetof(struct ml_lib_efficiency, default_kpi) == 16, "default_kpi");
_Static_assert(offsetof(struct ml_lib_efficiency, hinted_kpi) == 24, "hinted_kpi");
_Static_assert(offsetof(struct ml_lib_efficiency, weight) == 32, "weight");
_Static_assert(offsetof(struct ml_lib_efficiency, hinted_weight) == 40, "hinted_weight");
_Static_assert(offsetof(struct ml_lib_efficiency, efficiency_ppm) == 48, "efficiency_ppm");
_Static_assert(offsetof(struct ml_lib_efficiency, saved_ppm) == 56, "saved_ppm");
_Static_assert(offsetof(struct ml_lib_efficiency, loss_ppm) == 64, "loss_ppm");

#endif
