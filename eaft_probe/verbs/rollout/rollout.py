"""`rollout`: a model's own answers to the prompts of a data set, as rows that `scan` reads.

plan → check the file → load → answer unit after unit → join. A finished unit is skipped, and each
draws from random numbers of its own, so a killed rollout continues where it stopped and gives the
same answers.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from eaft_probe.columns.statistics import chosen_statistics
from eaft_probe.data.formats import Example, RowFormat
from eaft_probe.data.opening import data_format, open_data, require_obeyed, selection
from eaft_probe.data.prompts import Prompt, Prompts, json_line
from eaft_probe.data.reading import Reader, Rejected
from eaft_probe.data.record import Record
from eaft_probe.data.rendering.render import Renderer, RenderOptions
from eaft_probe.data.sources import Source, require_outside, require_same_content
from eaft_probe.data.units import Unit, UnitPlan
from eaft_probe.engines.vllm_loading import stop
from eaft_probe.engines.vllm_model import VllmModel
from eaft_probe.engines.vllm_sampling import VllmGenerator
from eaft_probe.errors import BadInput, ProbeError, RowError, one_line
from eaft_probe.model.loading import CausalLM, load_model
from eaft_probe.model.sampling import Answer, Generator, Sampling
from eaft_probe.progress import Progress, Silent
from eaft_probe.progress_bar import watched
from eaft_probe.quantities import counted_noun
from eaft_probe.scans.rejections import reason_lines, summed_reasons
from eaft_probe.scans.scan import Scan
from eaft_probe.settings import RolloutSettings, ScanSettings, as_scan, make_settings
from eaft_probe.storage.atomic import require_writable
from eaft_probe.verbs.rollout.files import PLAN, REJECTED, RolloutFiles
from eaft_probe.verbs.scan.load_scorer import serve
from eaft_probe.verbs.scan.plan import date_of_plan_file, make_plan
from eaft_probe.verbs.scan.scan import scan

# Answers at once where --batch-size is auto. SmolLM2-135M on one busy CPU core sampled 9 tokens/s
# alone, 35 with 8 at once, 54 with 16, 64 with 32, 81 with 64; an answer waits for the longest of
# its batch.
AUTO_BATCH = {"cpu": 32, "cuda": 128}


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished rollout: its file, and what that holds."""

    path: Path
    rows: int  # rows of the data
    rejected: int  # of them without a prompt, or with one that cannot be answered; listed
    prompts: int
    answers: int
    tokens: int  # sampled, those that end an answer counted
    cut: int  # answers that reached --max-new-tokens
    empty: int  # answers without text, which a scan rejects
    retokenized: int  # answers whose text has other tokens than were sampled
    scan: Scan | None = None  # of the answers, where --then-scan asked for it

    def summary(self) -> dict[str, Any]:
        """The counts as one JSON object."""
        counts = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("path", "scan")
        }
        return {"path": str(self.path), **counts, "rejected_reasons": self.rejected_reasons}

    @property
    def rejected_reasons(self) -> dict[str, int]:
        """Each reason with its rows; none where the list of rejected rows was removed."""
        with suppress(OSError, ValueError, KeyError):
            if self.rejected:
                with RolloutFiles(self.path).file(REJECTED).open() as lines:
                    return summed_reasons(str(json.loads(line)["reason"]) for line in lines)
        return {}

    def __str__(self) -> str:
        lines = [
            f"{counted_noun(self.answers, 'answer')} to {counted_noun(self.prompts, 'prompt')}, "
            f"{counted_noun(self.tokens, 'token')}, in {self.path}"
        ]
        notes = {
            "cut at --max-new-tokens": self.cut,
            "empty, which a scan rejects": self.empty,
            "with a text that reads back as other tokens than were sampled": self.retokenized,
        }
        lines += [f"{counted_noun(n, 'answer')} {what}" for what, n in notes.items() if n]
        if self.rejected:
            lines.append(
                f"{self.rejected:,} of {counted_noun(self.rows, 'row')} not answered, see "
                f"{RolloutFiles(self.path).file(REJECTED)}"
            )
            lines += [f"  {line}" for line in reason_lines(self.rejected_reasons)]
        return "\n".join(lines)


@watched
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
    tokens than were sampled), `temperature`, `top_p` and the conversation as `messages`, in which
    only the answer is trained; plain text has `prompt` and `completion` instead. A finished rollout
    with the same settings is returned as it is; an interrupted one is continued.

    Raises `BadInput` (data, model, flags, another file at `out`) or `ProbeError`.
    """
    chosen: RolloutSettings = make_settings(RolloutSettings, settings)
    progress = progress or Silent()
    reading = as_scan(chosen)
    source = open_data(data, reading, progress.note)
    require_obeyed(source, reading)
    files = RolloutFiles(_writable(Path(out), data))
    row_format = data_format(source, reading)
    units = UnitPlan.of(source, selection(reading), chosen.rows_per_unit)
    plan = _plan(source, row_format, units, reading, chosen)
    if "today" in plan:
        plan["today"] = date_of_plan_file(files.file(PLAN), chosen.today, chosen.overwrite)
        chosen = replace(chosen, today=plan["today"])
    counts = files.finished(plan, chosen.overwrite)
    if counts is None:
        load = partial(Answerer, row_format, chosen, plan["batch_size"], progress)
        counts = _answer(files, units, plan, chosen, progress, load)
    done = Rollout(files.path, **counts, scan=None)
    if chosen.then_scan is None:
        return done
    return _scanned(done, chosen.then_scan, chosen, progress)


def _writable(out: Path, data: Any) -> Path:
    """The file to write. Raises `BadInput` where it could not be read as data, or is the data."""
    if out.suffix != ".jsonl":
        raise BadInput(f"--out {out}: the answers are JSON lines; give a name that ends in .jsonl")
    require_outside(out, data)
    require_writable(out.parent)
    return out


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
    files: RolloutFiles,
    units: UnitPlan,
    plan: dict[str, Any],
    settings: RolloutSettings,
    progress: Progress,
    load: Callable[[], "Answerer"],
) -> dict[str, int]:
    """Answers the units that have no part yet, joins all parts and gives their counts."""
    files.require_unused()
    finished = not settings.overwrite and all(map(files.has, range(units.count)))
    # Loaded before a file is touched: a typo must not cost an old rollout.
    answerer = None if finished else load()
    try:
        with files.alone(progress.note):
            counts = files.finished(plan, settings.overwrite)  # by another run, meanwhile
            if counts is None:
                files.prepare(plan, settings.overwrite)
                progress.start("rollout", units.rows)
                for unit in units.units():
                    if files.has(unit.index) or answerer is None:
                        progress.advance(len(unit.records), 0)
                    else:
                        files.write(unit.index, *answerer.answer(unit))
                require_same_content(units.source, plan["data"]["fingerprint"])
                counts = files.join(units.count, plan)
            return counts
    except OSError as error:
        raise ProbeError(
            f"cannot write {files.path}: {error.strerror or one_line(error)}; finished units are "
            f"kept, and the same command continues from there"
        ) from error
    finally:
        stop()


class Answerer:
    """Answers units under one model. A unit's part depends on the unit and the settings alone.

    Raises `BadInput` where the model, or what is asked of it, does not fit.
    """

    def __init__(
        self, row_format: RowFormat, settings: RolloutSettings, batch_size: int, progress: Progress
    ) -> None:
        self.settings, self.progress = settings, progress
        progress.note(f"loading {settings.model}")
        sampling = Sampling(
            settings.n, settings.temperature, settings.top_p, settings.max_new_tokens
        )
        model: CausalLM | VllmModel
        self.sampler: Generator | VllmGenerator
        if settings.engine == "vllm":
            model = serve(as_scan(settings), chosen_statistics([], False), progress)
            self.sampler = VllmGenerator(model, sampling)
        else:
            model = load_model(settings.model, **settings.loading())
            self.sampler = Generator(model, sampling, batch_size)
        self.prompts = Prompts(Renderer(model.tokenizer, RenderOptions.of(as_scan(settings))))
        self.row_format = row_format
        self.model, self.max_length = model, settings.max_length or model.max_length
        self._require_room()
        if self.prompts.renderer.limits:
            progress.note(self.prompts.renderer.limits)

    def _require_room(self) -> None:
        if self.max_length > self.model.max_length:
            raise BadInput(
                f"--max-length {self.max_length} is more than {self.settings.model} reads "
                f"({self.model.max_length} tokens)"
            )
        if self.settings.max_new_tokens >= self.max_length:
            raise BadInput(
                f"--max-new-tokens {self.settings.max_new_tokens} leaves no room for a "
                f"prompt in {self.max_length} tokens"
            )

    def _prompt(self, example: Example) -> Prompt:
        """The example's prompt. Raises `RowError` where it has none that fits."""
        prompt = self.prompts(example)
        length, new = len(prompt.ids), self.settings.max_new_tokens
        if max(prompt.ids) >= self.model.head.vocab_size:
            raise RowError(f"token id {max(prompt.ids)} is beyond the model's vocabulary")
        if length + new > self.max_length:
            raise RowError(
                f"the prompt's {length} tokens leave no room for --max-new-tokens {new} "
                f"in {self.max_length}"
            )
        return prompt

    def answer(self, unit: Unit) -> tuple[list[str], dict[str, object]]:
        """The unit's lines, in the order of its rows, and a report of counts and rejected rows."""
        reader = Reader(self.row_format, self._prompt, self.settings.strict)
        results = [(record, reader(record)) for record in unit.records]
        rejected = [r.as_line() for _, r in results if isinstance(r, Rejected)]
        prompts = [(record, r[1]) for record, r in results if not isinstance(r, Rejected)]
        self.progress.advance(len(rejected), 0)
        answers = self.sampler.sample(
            [prompt.ids for _, prompt in prompts],
            self.prompts.stops(),
            f"{self.settings.seed}/{unit.index}",
            self.progress.advance,
        )
        lines, read = list[str](), list[tuple[Answer, str]]()
        for (record, prompt), of_prompt in zip(prompts, answers, strict=True):
            for sample, answer in enumerate(of_prompt):
                text, reads_back = self._line(record, prompt, sample, answer)
                lines.append(text)
                read.append((answer, reads_back))
        counts = {
            "rows": len(results),
            "rejected": len(rejected),
            "prompts": len(prompts),
            "answers": len(lines),
            "tokens": sum(answer.tokens for answer, _ in read),
            "cut": sum(answer.stop is None for answer, _ in read),
            "empty": sum(reads_back == "empty" for _, reads_back in read),
            "retokenized": sum(reads_back == "other" for _, reads_back in read),
        }
        return lines, {"counts": counts, "rejected": rejected}

    def _line(self, record: Record, prompt: Prompt, sample: int, answer: Answer) -> tuple[str, str]:
        """An answer as a line of the file, and how its text reads back."""
        row, reads_back = self.prompts.row(prompt, answer.ids, answer.stop)
        about = {
            "row": record.row,
            "key": prompt.example.key or str(record.row),
            "sample": sample,
            "finish": answer.finish,
            "retokenized": reads_back == "other",
            "temperature": self.settings.temperature,
            "top_p": self.settings.top_p,
        }
        return json_line(about | row), reads_back


def _scanned(done: Rollout, folder: str, settings: RolloutSettings, progress: Progress) -> Rollout:
    """The rollout with a scan of its answers under the model that gave them."""
    names = ["model", "tool_calls", "max_length", "overwrite", "chat_template", "template_arg"]
    names += ["engine", "engine_arg", "today"]
    answers = scan(
        done.path,
        folder,
        progress=progress,
        keep=["row", "sample", "finish", "retokenized", "temperature", "top_p"],
        **settings.loading(),
        **{name: getattr(settings, name) for name in names},
    )
    return replace(done, scan=answers)
