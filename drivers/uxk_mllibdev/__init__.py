"""The test device of kernel-ml-lib: ``/dev/mllibdev``, with a model, a dataset to read and advice to write.

Reading gives the model's dataset, 1024 times one random byte; writing gives advice: the byte to guess, bare or behind a
``struct ml_lib_user_space_recommendation``.  In the reference nothing looks at what was written; here the model's
mode decides how many units follow it (uxk proposal; docs/kernel-ml-lib.md).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Annotated, Final

import msgspec

import uxk
from uxk.uapi import mllib
from uxk.uapi.ml import Dataset, decode_dataset, decode_feedback
from uxk.uapi.mllibabi import (
    FEEDBACK,
    FEEDBACK_APPLIED,
    FEEDBACK_REFUSED,
    RECOMMENDATION,
    RECOMMENDATION_MAGIC,
    RECOMMENDATION_STANDING,
    TEST_DEV_STATS,
)
from uxk_mllibdev.device import UNITS, Stream

BUFFER_BYTES: Final = mllib.ML_LIB_TEST_BUFFER_BYTES
MODEL: Final = mllib.ML_LIB_TEST_MODEL
RETRY_NS: Final = 1_000_000
"""When what found the queue full is said again."""


class MlLibDevParams(uxk.Params):
    """What ``modprobe mllibdev level=40`` may set."""

    level: Annotated[int, uxk.param(ge=0, le=255, writable=True, help="middle of the stream, to be learned")] = 200
    spread: Annotated[int, uxk.param(ge=0, le=127, writable=True, help="how far from it values are, at most")] = 8
    epoch_ns: Annotated[int, uxk.param(ge=1_000, le=10**12, unit="ns", help="time between two epochs")] = 20_000_000
    ttl_ns: Annotated[int, uxk.param(ge=1, le=10**15, unit="ns", help="life of bare advice")] = 3600 * 10**9


class MlLibDev(uxk.Extension[MlLibDevParams]):
    """Test device of kernel-ml-lib: dataset out, recommendations in, efficiency and feedback for them."""

    manifest = uxk.Manifest(
        name="mllibdev",
        version="0.1.0",
        author="The uxk authors",
        license="Apache-2.0",
        kind="ml-agent",  # its one device has the reference's name, without a number
        driver_class=mllib.ML_LIB_TEST_CLASS,
        params=MlLibDevParams,
        budget=uxk.Budget(memory_bytes=0, queue_depth=256),  # a turn may say more than it hears
        capabilities=(f"model:*-{MODEL}:read", f"site:*.{MODEL}"),
        ioctls=(
            uxk.Ioctl("ml_lib_test_dev_iocreset", mllib.ML_LIB_TEST_DEV_IOCRESET),
            uxk.Ioctl("ml_lib_test_dev_iocgetsize", mllib.ML_LIB_TEST_DEV_IOCGETSIZE),
            uxk.Ioctl("ml_lib_test_dev_iocsetsize", mllib.ML_LIB_TEST_DEV_IOCSETSIZE, arg=int),
            uxk.Ioctl("ml_lib_test_dev_iocgetmodelid", mllib.ML_LIB_TEST_DEV_IOCGETMODELID),
            uxk.Ioctl("ml_lib_test_dev_iocgetstats", mllib.ML_LIB_TEST_DEV_IOCGETSTATS, reply=bytes),
            uxk.Ioctl("ml_lib_test_dev_iocgetfeedback", mllib.ML_LIB_TEST_DEV_IOCGETFEEDBACK, reply=bytes),
        ),
    )

    def setup(self, ctx: uxk.Context) -> None:
        """The device, its node, and the model, which waits to be started through ``control``."""
        # Two sources of numbers: what is read does not depend on how many epochs there were before.
        self.stream, self.source = (
            Stream(_integers(ctx, name), self.params.level, self.params.spread) for name in ("stream", "dataset")
        )
        self.site, self.model, self.model_id = f"{ctx.name}.{MODEL}", f"{ctx.name}-{MODEL}", 0
        self.advice = bytearray(BUFFER_BYTES)
        self.data_size = self.opens = self.reads = self.writes = self.applied = self.refused = 0
        self.state: uxk.SiteState | None = None
        self.last_read: Dataset | None = None
        self.feedback = b""
        self.fills = 0
        self._reads: list[uxk.Request] = []
        self._waiting = True
        ctx.add_device(ctx.name)
        ctx.add_chardev(ctx.name)
        ctx.set_poll(ctx.name, readable=True, writable=True)
        ctx.offer_site(
            self.site, units=UNITS, schema=(("value", "u1"),), rows_max=BUFFER_BYTES, start=False, on_demand=True,
        ).then(lambda answer: self._offered(ctx, answer))  # fmt: skip
        self._show(ctx, "buffer_size", BUFFER_BYTES)
        self._show(ctx, "feedback", "none")
        self._show_figures(ctx)

    def _offered(self, ctx: uxk.Context, answer: uxk.Completion) -> None:
        if answer.status:
            ctx.log(f"no model: {answer.payload.decode(errors='replace')}", level=3)
            return
        self.model_id, self._waiting = answer.result, False
        ctx.call_later_ns(self.params.epoch_ns, self._epoch, ctx, daemon=True)

    # --- the device at work ---

    def _epoch(self, ctx: uxk.Context) -> None:
        """Measures both arms and reports; what to follow comes with the answer."""
        ctx.call_later_ns(self.params.epoch_ns, self._epoch, ctx, daemon=True)
        if self._waiting:
            return
        state = self.state
        hint = b"" if state is None else state.hint
        arms = self.stream.epoch(hint[0] if hint else None, 0 if state is None else state.hinted_units)
        with suppress(uxk.RingFull):  # the kernel hears of the next one
            reply = ctx.end_epoch(
                self.site, default_kpi=arms.default_kpi, hinted_kpi=arms.hinted_kpi, weight=UNITS,
                hinted_weight=arms.hinted_units,
            )  # fmt: skip
            self._waiting = True
            reply.then(self._ended)

    def _ended(self, answer: uxk.Completion) -> None:
        self._waiting = False
        self.state = None if answer.status else uxk.decode_site(answer.payload)

    def on_event(self, ctx: uxk.Context, event: uxk.Event) -> None:
        """Rows are wanted, feedback has come, or a parameter was written."""
        if event.topic == "prepare":
            self._fill(ctx)
        elif event.topic == "param":
            for stream in (self.stream, self.source):
                setattr(stream, event.name, int(event.value))
        elif event.topic == "feedback":
            for record in decode_feedback(event.value):
                self.applied += not record.reject
                self.refused += bool(record.reject)
                self.feedback = FEEDBACK.pack(
                    hint=record.hint, predicted=record.predicted, outcome=record.outcome, baseline=record.baseline,
                    dataset_id=record.dataset, dataset_generation=record.generation,
                    status=FEEDBACK_REFUSED if record.reject else FEEDBACK_APPLIED,
                )  # fmt: skip
                self._show(ctx, "feedback", "\n".join((
                    f"hint {record.hint}", f"predicted {record.predicted}", f"outcome {record.outcome}",
                    f"baseline {record.baseline}", f"status {record.reject or 'applied'}",
                    f"applied {self.applied}", f"refused {self.refused}",
                )))  # fmt: skip

    def _fill(self, ctx: uxk.Context) -> None:
        """New rows, and then what reads have waited for them."""
        try:
            ctx.fill_dataset(self.site, bytes([self.source.draw()]) * BUFFER_BYTES)
        except uxk.RingFull:
            ctx.call_later_ns(RETRY_NS, self._fill, ctx)
            return
        self.fills += 1
        reads, self._reads = self._reads, []
        for request in reads:
            self._read(ctx, request, again=False)

    # --- its node ---

    def on_batch(self, ctx: uxk.Context, requests: Sequence[uxk.Request]) -> None:
        """Every request is answered once: here, or when the kernel has answered."""
        for request in requests:
            match request.opcode:
                case uxk.Op.OPEN:
                    self.opens += 1
                    ctx.complete(request)
                case uxk.Op.READ:
                    self._read(ctx, request)
                case uxk.Op.WRITE:
                    self._write(ctx, request)
                case uxk.Op.IOCTL:
                    self._ioctl(ctx, request)
                case uxk.Op.NOP | uxk.Op.RELEASE:
                    ctx.complete(request)
                case _:
                    ctx.fail(request, errno.EOPNOTSUPP)
        self._show_figures(ctx)

    def _read(self, ctx: uxk.Context, request: uxk.Request, *, again: bool = True) -> None:
        """A portion of the dataset; the kernel knows how far it was extracted, and has rows made if there are none."""
        size, fills = min(request.length, BUFFER_BYTES - request.offset), self.fills
        if size <= 0:
            ctx.complete(request)
            return

        def answered(answer: uxk.Completion) -> None:
            if answer.status == errno.EAGAIN and again:  # the event that asks for rows has come, or is to come
                if self.fills > fills:
                    self._read(ctx, request, again=False)
                else:
                    self._reads.append(request)
            elif answer.status:
                ctx.fail(request, answer.status)
            else:
                self._give(ctx, request, decode_dataset(answer.payload), answer.result)

        try:
            reply = ctx.model(self.model, uxk.ModelCommand.GET_DATASET, "rows", offset=request.offset, size=size)
        except uxk.RingFull as exc:
            ctx.fail(request, exc.errno)
        else:
            reply.then(answered)

    def _give(self, ctx: uxk.Context, request: uxk.Request, dataset: Dataset, cap: int) -> None:
        try:
            rows = ctx.map(cap)
            data = bytes(rows[dataset.portion_offset : dataset.portion_offset + dataset.portion_size])
        except uxk.CapabilityError as exc:  # a new generation has come meanwhile
            ctx.fail(request, exc.errno)
            return
        self.reads += 1
        self.last_read = dataset
        ctx.complete(request, data, result=len(data))
        self._show_figures(ctx)

    def _write(self, ctx: uxk.Context, request: uxk.Request) -> None:
        """Keeps what fits, and passes it on as advice; what speaks against it is the write's errno."""
        begin = request.offset
        data = request.payload[: max(0, BUFFER_BYTES - begin)]
        if not data:
            ctx.fail(request, errno.ENOSPC if request.payload else errno.EINVAL)
            return
        end = begin + len(data)
        self.advice[begin:end] = data
        self.data_size = max(self.data_size, end)
        self.writes += 1

        def answered(answer: uxk.Completion) -> None:
            if answer.status:
                ctx.log(f"advice refused: {answer.payload.decode(errors='replace')}", level=4)
            ctx.complete(request, status=answer.status, result=0 if answer.status else len(data))

        try:
            reply = self._recommend(ctx, bytes(self.advice[:end]))
        except (uxk.UsageError, uxk.RingFull) as exc:
            ctx.log(str(exc), level=4)
            ctx.fail(request, exc.errno)
        else:
            reply.then(answered)

    def _recommend(self, ctx: uxk.Context, text: bytes) -> uxk.Reply:
        """A hint from what was written.  EINVAL for a structure that says less or more than follows it."""
        if not text.startswith(RECOMMENDATION_MAGIC.to_bytes(4, "little")):
            dataset = self.last_read
            origin = (dataset.id, dataset.generation) if dataset else (0, 0)
            return ctx.hint(
                self.site, 0, self.params.ttl_ns, text, origin[0], dataset_generation=origin[1], standing=True
            )
        found = {name: int(value) for name, value in RECOMMENDATION.unpack(text).items()}
        payload = text[RECOMMENDATION.size_bytes :]
        if not payload or len(payload) != found["payload_size"] or found["flags"] != RECOMMENDATION_STANDING:
            raise uxk.UsageError(
                f"struct {RECOMMENDATION.name}: flags {found['flags']}, payload_size {found['payload_size']} and "
                f"{len(payload)} bytes behind it; expected flags {RECOMMENDATION_STANDING} and as many bytes"
            )
        return ctx.hint(
            self.site, found["generation"], found["ttl_ns"], payload, found["dataset_id"],
            dataset_generation=found["dataset_generation"], predicted=found["predicted"], standing=True,
        )  # fmt: skip

    def _ioctl(self, ctx: uxk.Context, request: uxk.Request) -> None:
        match request.offset:
            case mllib.ML_LIB_TEST_DEV_IOCRESET:
                self.advice[:] = bytes(BUFFER_BYTES)
                self.data_size = 0
                ctx.complete(request)
            case mllib.ML_LIB_TEST_DEV_IOCGETSIZE:
                ctx.complete(request, result=self.data_size)
            case mllib.ML_LIB_TEST_DEV_IOCSETSIZE:
                size = msgspec.msgpack.decode(request.payload, type=int)
                if not 0 <= size <= BUFFER_BYTES:
                    ctx.fail(request, errno.EINVAL)
                    return
                self.data_size = size
                ctx.complete(request)
            case mllib.ML_LIB_TEST_DEV_IOCGETMODELID:
                ctx.complete(request, result=self.model_id)
            case mllib.ML_LIB_TEST_DEV_IOCGETSTATS:
                stats = TEST_DEV_STATS.pack(
                    buffer_size=BUFFER_BYTES, data_size=self.data_size, access_count=self.opens,
                    read_count=self.reads, write_count=self.writes,
                )  # fmt: skip
                ctx.complete(request, msgspec.msgpack.encode(stats))
            case mllib.ML_LIB_TEST_DEV_IOCGETFEEDBACK if self.feedback:
                ctx.complete(request, msgspec.msgpack.encode(self.feedback))
            case mllib.ML_LIB_TEST_DEV_IOCGETFEEDBACK:
                ctx.fail(request, errno.ENODATA)
            case _:
                ctx.fail(request, errno.ENOTTY)

    # --- what it shows ---

    def _show_figures(self, ctx: uxk.Context) -> None:
        self._show(ctx, "data_size", self.data_size)
        self._show(ctx, "access_count", self.opens)
        self._show(ctx, "stats", f"Opens: {self.opens}\nReads: {self.reads}\nWrites: {self.writes}")

    @staticmethod
    def _show(ctx: uxk.Context, name: str, value: object) -> None:
        with suppress(uxk.RingFull):  # it is shown with the next
            ctx.set_attribute(f"{ctx.name}/{name}", value)


def _integers(ctx: uxk.Context, name: str) -> Callable[[int, int], int]:
    generator = ctx.random_streams.stream(name)
    return lambda low, end: int(generator.integers(low, end))
