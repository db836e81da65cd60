"""`rollout`: a model's own answers to the prompts of a data set, as rows that `scan` reads.

plan → check the file → load → answer unit after unit → join. A unit that is already there is
skipped, and each draws from random numbers of its own, so a killed rollout goes on where it stopped
and comes out the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from eaft_probe.data.formats import Example, RowFormat
from eaft_probe.data.opening import data_format, open_data, selection
from eaft_probe.data.prompts import Prompt, Prompts, line
from eaft_probe.data.reading import Reader, Rejected
from eaft_probe.data.record import Record
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.sources import Source, require_outside, require_same_content
from eaft_probe.data.units import Unit, UnitPlan
from eaft_probe.errors import BadInput, ProbeError, RowError, one_line
from eaft_probe.model.loading import load_model
from eaft_probe.model.sampling import Answer, Generator, Sampling
from eaft_probe.progress import Progress, Silent
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import RolloutSettings, ScanSettings, make_settings
from eaft_probe.storage.atomic import require_writable
from eaft_probe.verbs.rollout.files import PLAN, REJECTED, RolloutFiles
from eaft_probe.verbs.scan.plan import make_plan, told_date
from eaft_probe.verbs.scan.scan import scan

# Answers at once where --batch-size is auto. SmolLM2-135M on one busy CPU core sampled 9 tokens/s
# alone, 35 of 8 at once, 54 of 16, 64 of 32, 81 of 64; an answer waits for the longest beside it.
AUTO_BATCH = {"cpu": 32, "cuda": 128}


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished rollout: where it lies, and what it holds."""

    path: Path
    rows: int  # rows of the data
    rejected: int  # of them without a prompt, or with one that cannot be answered; listed
    prompts: int
    answers: int
    tokens: int  # sampled, those that end an answer counted
    cut: int  # answers that reached --max-new-tokens
    empty: int  # answers without a word, which a scan rejects
    retokenized: int  # answers whose text has other tokens than were sampled
    scan: Scan | None = None  # of the answers, where --then-scan asked for it

    def summary(self) -> dict[str, Any]:
        """The counts as one JSON object."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "scan"} | {
            "path": str(self.path)
        }

    def __str__(self) -> str:
        told = [
            f"{self.answers:,} answers to {self.prompts:,} prompts, {self.tokens:,} tokens, "
            f"in {self.path}"
        ]
        of = f"of {self.answers:,} answers"
        if self.cut:
            told.append(f"{self.cut:,} {of} were cut at --max-new-tokens")
        if self.empty:
            told.append(f"{self.empty:,} {of} are empty, which a scan rejects")
        if self.retokenized:
            told.append(f"{self.retokenized:,} {of} read back as other tokens than were sampled")
        if self.rejected:
            told.append(
                f"{self.rejected:,} of {self.rows:,} rows were not answered, see "
                f"{RolloutFiles(self.path).beside(REJECTED)}"
            )
        return "\n".join(told)


def rollout(
    data: Any = None,
    out: str | Path = "rollout.jsonl",
    *,
    progress: Progress | None = None,
    **settings: Any,
) -> Rollout:
    """Samples a model's answers to the prompts of `data` and writes them to `out`, F.jsonl.

    `data`: as `scan` takes it. Every other argument is a field of `RolloutSettings` and a flag of
    `eaft-probe rollout`. Each line has `row` (in `data`), `key`, `sample` (0 … n − 1), `finish`
    ("stop", or "length" for an answer that was cut), `retokenized` (whether its text has other
    tokens than were sampled) and the conversation as `messages`, in which the answer alone is
    trained; plain text has `prompt` and `completion` instead. A finished rollout with the same
    settings is returned as it is; an interrupted one goes on.

    Raises `BadInput` (data, model, flags, another file at `out`) or `ProbeError`.
    """
    chosen: RolloutSettings = make_settings(RolloutSettings, settings)
    progress = progress or Silent()
    reading = _reading(chosen)
    source = open_data(data, reading)
    files = RolloutFiles(_writable(Path(out), data))
    row_format = data_format(source, reading)
    units = UnitPlan.of(source, selection(reading), chosen.rows_per_unit)
    plan = _plan(source, row_format, units, reading, chosen)
    if "today" in plan:
        plan["today"] = told_date(files.beside(PLAN), chosen.today, chosen.overwrite)
        chosen = replace(chosen, today=plan["today"])
    counts = files.finished(plan, chosen.overwrite)
    if counts is None:
        answerer = Answerer(row_format, chosen, plan["batch_size"], progress)
        counts = _answer(files, units, plan, answerer)
    done = Rollout(files.path, **counts, scan=None)
    return done if chosen.then_scan is None else _scanned(done, chosen, progress)


def _writable(out: Path, data: Any) -> Path:
    """The file to write. Raises `BadInput` where it could not be read as data, or is the data."""
    if out.suffix != ".jsonl":
        raise BadInput(f"--out {out}: the answers are JSON lines, so give a name in .jsonl")
    require_outside(out, data)
    require_writable(out.parent)
    return out


def _reading(settings: RolloutSettings) -> ScanSettings:
    """How a scan would read the same rows."""
    names = {f.name for f in fields(ScanSettings)} & {f.name for f in fields(RolloutSettings)}
    shared = {n: getattr(settings, n) for n in names - {"overwrite", "train_on"}}
    return ScanSettings(**shared)


def _plan(
    source: Source,
    row_format: RowFormat,
    units: UnitPlan,
    reading: ScanSettings,
    settings: RolloutSettings,
) -> dict[str, Any]:
    """A scan's plan of the same rows under the same model, with the settings of a rollout."""
    plan = make_plan(source, row_format, units, reading) | {"settings": settings.identity()}
    del plan["tokens_per_batch"], plan["reference_identity"]
    auto = AUTO_BATCH["cuda" if plan["device"].startswith("cuda") else "cpu"]
    return plan | {"batch_size": auto if settings.batch_size == "auto" else settings.batch_size}


def _answer(
    files: RolloutFiles, units: UnitPlan, plan: dict[str, Any], answerer: "Answerer"
) -> dict[str, int]:
    """Answers the units that are not there yet, and joins all."""
    settings = answerer.settings
    files.require_unused()
    begun = not settings.overwrite
    todo = [i for i in range(units.count) if not (begun and files.has(i))]
    if todo:
        answerer.load()  # before a file is touched: a typo must not cost an old rollout
    try:
        with files.alone(answerer.progress.note):
            counts = files.finished(plan, settings.overwrite)  # by another run, meanwhile
            if counts is None:
                files.prepare(plan, settings.overwrite)
                _run(files, units, answerer)
                require_same_content(units.source, plan["data"]["fingerprint"])
                counts = files.join(units.count, plan)
            return counts
    except OSError as error:
        raise ProbeError(
            f"cannot write {files.path}: {error.strerror or one_line(error)}; what is finished "
            f"stays, the same command goes on from there"
        ) from error


def _run(files: RolloutFiles, units: UnitPlan, answerer: "Answerer") -> None:
    """A unit whose part is there is passed over."""
    answerer.progress.start("rollout", units.rows)
    for unit in units.units():
        if files.has(unit.index):
            answerer.progress.advance(len(unit.records), 0)
        else:
            files.write(unit.index, *answerer.answer(unit))


class Answerer:
    """Answers units under one model. A unit's part depends on the unit and the settings alone."""

    sampler: Generator
    prompts: Prompts
    reader: Reader[Prompt]

    def __init__(
        self, row_format: RowFormat, settings: RolloutSettings, batch_size: int, progress: Progress
    ) -> None:
        self.row_format, self.settings = row_format, settings
        self.batch_size, self.progress = batch_size, progress

    def load(self) -> None:
        """Loads the model. Raises `BadInput` where it, or what is asked of it, does not fit."""
        settings = self.settings
        self.progress.note(f"loading {settings.model}")
        sampling = Sampling(
            settings.n, settings.temperature, settings.top_p, settings.max_new_tokens
        )
        model = load_model(settings.model, **settings.loading())
        self.sampler = Generator(model, sampling, self.batch_size)
        self.prompts = Prompts(Renderer(model.tokenizer, RenderOptions.of(settings)))
        self.reader = Reader(self.row_format, self._prompt, settings.strict)
        self._require_room()
        if self.prompts.renderer.limits:
            self.progress.note(self.prompts.renderer.limits)

    def _require_room(self) -> None:
        read = self.sampler.max_length
        if self.max_length > read:
            raise BadInput(
                f"--max-length {self.max_length} is more than {self.settings.model} "
                f"reads ({read} tokens)"
            )
        if self.settings.max_new_tokens >= self.max_length:
            raise BadInput(
                f"--max-new-tokens {self.settings.max_new_tokens} leaves no room for a "
                f"prompt in {self.max_length} tokens"
            )

    @cached_property
    def max_length(self) -> int:
        return self.settings.max_length or self.sampler.max_length

    def _prompt(self, example: Example) -> Prompt:
        """The example's prompt. Raises `RowError` where it has none that fits."""
        prompt = self.prompts(example)
        length, new = len(prompt.ids), self.settings.max_new_tokens
        if max(prompt.ids) >= self.sampler.vocab_size:
            raise RowError(f"token id {max(prompt.ids)} is beyond the model's vocabulary")
        if length + new > self.max_length:
            raise RowError(
                f"the prompt's {length} tokens leave no room for --max-new-tokens {new} "
                f"in {self.max_length}"
            )
        return prompt

    def answer(self, unit: Unit) -> tuple[list[str], dict[str, Any]]:
        """The unit's lines, in the order of its rows, and a report of counts and rejected rows."""
        rows = UnitAnswers(self)
        for record in unit.records:
            rows.read(record)
        self.progress.advance(len(rows.rejected), 0)
        answers = self.sampler.sample(
            [p.ids for _, p in rows.prompts],
            self.prompts.stops(),
            f"{self.settings.seed}/{unit.index}",
            self.progress.advance,
        )
        for (record, prompt), own in zip(rows.prompts, answers, strict=True):
            rows.take(record, prompt, own)
        return rows.lines, {"counts": rows.counts, "rejected": rows.rejected}


class UnitAnswers:
    """The rows of one unit on their way from records to lines."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer
        self.prompts: list[tuple[Record, Prompt]] = []
        self.rejected: list[dict[str, Any]] = []
        self.lines: list[str] = []
        self.counts = {f.name: 0 for f in fields(Rollout) if f.name not in ("path", "scan")}

    def read(self, record: Record) -> None:
        """Takes the record's prompt, or rejects it with the reason."""
        self.counts["rows"] += 1
        found = self.answerer.reader(record)
        if isinstance(found, Rejected):
            self.counts["rejected"] += 1
            self.rejected.append(found.as_line())
        else:
            self.counts["prompts"] += 1
            self.prompts.append((record, found[1]))

    def take(self, record: Record, prompt: Prompt, answers: Sequence[Answer]) -> None:
        """Adds the lines of a prompt's answers."""
        about = {"row": record.row, "key": prompt.example.key or str(record.row)}
        for sample, answer in enumerate(answers):
            row, reads_back = self.answerer.prompts.row(prompt, answer.ids, answer.stop)
            own = {"sample": sample, "finish": answer.finish, "retokenized": reads_back == "other"}
            self.lines.append(line({**about, **own, **row}))
            self.counts["answers"] += 1
            self.counts["tokens"] += answer.tokens
            self.counts["cut"] += answer.stop is None
            self.counts["empty"] += reads_back == "empty"
            self.counts["retokenized"] += reads_back == "other"


def _scanned(done: Rollout, settings: RolloutSettings, progress: Progress) -> Rollout:
    """The rollout with a scan of its answers under the model that gave them."""
    shared: Mapping[str, Any] = {
        **settings.loading(),
        "model": settings.model,
        "tool_calls": settings.tool_calls,
        "max_length": settings.max_length,
        "overwrite": settings.overwrite,
        "keep": ["row", "sample", "finish", "retokenized"],
        "chat_template": settings.chat_template,
        "template_arg": settings.template_arg,
        "today": settings.today,
    }
    assert settings.then_scan is not None
    return replace(done, scan=scan(done.path, settings.then_scan, progress=progress, **shared))
