"""The options record of ``trace``: the one place where a setting is named, described and checked.

Command-line help, the YAML file, ``run.json`` and the Python keywords are all this record. It is importable in a blink:
no torch here, so what needs the libraries (damping strings, layer patterns, method names) is checked where it is used.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, field_validator

from whence.errors import OptionError, did_you_mean

MAX_CONFIG_BYTES = 4 << 20
Record = TypeVar("Record", bound=BaseModel)


class TraceOptions(BaseModel):
    """Every setting of an attribution that is not the model, the data or the question."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: str = Field(
        default="ekfac", description="Curvature: a name from `whence methods`, or package.module of your own."
    )
    fisher: Literal["sampled", "empirical"] = Field(
        default="sampled",
        description="Labels of the curvature pass: drawn from the model (true Fisher) or from the data.",
    )
    damping: str = Field(
        default="relative:0.1",
        description="relative:X (times the mean eigenvalue of each layer), absolute:X, factored:X, or implied:MODEL "
        "(measured from the model that training started from). Default of ekfac_cg: relative:10.",
    )
    layers: tuple[str, ...] = Field(
        default=(),
        description="Layer patterns like `*.mlp.*`, several with commas; `!pattern` excludes. Default: every linear "
        "map of the blocks.",
    )
    fit_rows: Literal["auto", "all"] | int = Field(
        default="auto",
        description="Rows for the curvature: auto stops once a split-half check has converged; all; or a count.",
    )
    top_k: int | None = Field(
        default=None,
        ge=1,
        description="Keep only the K strongest proponents and opponents per query (default: all scores).",
    )
    normalise: Literal["none", "cosine", "relative", "theta"] = Field(
        default="none",
        description="Divide by a length: relative (l-RelatIF: root of the row's self-influence), theta (theta-RelatIF: "
        "how far the row moves the parameters), cosine (relative, and by the question's too).",
    )
    candidates: str | None = Field(
        default=None,
        description="Score only rows that cheaper filters let through: bm25:5%, or tfidf:10000,index@index/:200; "
        "also embedding, activation, and a+b for both. What that loses is measured.",
    )
    audit: Literal["auto", "all"] | NonNegativeInt = Field(
        default="auto",
        description="Rows beside the candidates that are scored to measure what the filters lost: a count, all, or "
        "auto (a twentieth of the rows, at least 200).",
    )
    query_rank: Literal["auto", "none"] | PositiveInt = Field(
        default="auto",
        description="Keep questions at this rank in every layer where that saves memory; none: whole; auto: at 32 if "
        "they would not fit into 1 GiB.",
    )
    checkpoints: str | None = Field(
        default=None,
        description="Output folder of a Hugging Face Trainer: scores are averaged over its checkpoint-N folders. Or "
        "folders of models or adapters, separated by commas.",
    )
    checkpoint_weights: Literal["auto", "mean", "learning_rate"] = Field(
        default="auto",
        description="Weights of checkpoints; auto: learning rates for the method identity (TracInCP), else the mean.",
    )
    per_layer: bool = Field(default=False, description="Also keep the score of every layer.")
    self_influence: bool = Field(default=False, description="Also compute each training row's influence on itself.")
    tokens: int = Field(
        default=5,
        ge=0,
        description="Token scores of this many of the strongest rows on each side of every question (0 = none).",
    )
    span: str | None = Field(
        default=None, description="Explain only characters start:stop of the response, such as 12:30."
    )
    combine: Literal["each", "mean", "contrast"] = Field(
        default="each",
        description="Questions one by one; as one direction (mean); or A minus B: two questions, or two files.",
    )
    generate: int = Field(
        default=0,
        ge=0,
        description="Let the model answer a prompt that has no response: most tokens of its greedy continuation.",
    )
    lexical: bool = Field(default=True, description="Show BM25 word overlap beside every score.")
    task: str = Field(
        default="auto",
        description="causal_lm, classification, token_classification, seq2seq, preference, diffusion; settings after a "
        "colon (preference:beta=0.2). auto goes by the model.",
    )
    columns: dict[str, str] = Field(
        default={}, description="Column mapping: our name to yours, such as {text: story}; for rows under other names."
    )
    max_length: int | None = Field(
        default=None,
        ge=2,
        description="Cut rows to this many tokens, as the trainer did (default: what the model can take).",
    )
    train_size: int | None = Field(
        default=None,
        ge=1,
        description="Rows the model was trained on, where the data are only some of them: effects are of that N.",
    )
    record: Literal["auto", "ignore"] = Field(
        default="auto",
        description="Record of the training beside the model (WhenceCallback): used and compared with, or ignored.",
    )
    max_bad_rows: float = Field(
        default=0.01,
        ge=0,
        description="Stop when more rows than this are unusable: a share below 1, or a count from 1.",
    )
    batch_tokens: int = Field(
        default=4096, ge=1, description="Tokens per batch with padding. Changes speed and memory only."
    )
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16", "int8", "nf4"] = Field(
        default="auto",
        description="Number type of the model; auto keeps the checkpoint's; int8, nf4: quantised, under an adapter.",
    )
    device: str = Field(default="auto", description="cpu, cuda, cuda:1, mps; auto takes a GPU if there is one.")
    offload: tuple[Literal["factors", "disk", "activations"], ...] = Field(
        default=(),
        description="What waits outside the GPU: factors (in main memory), disk (factors in memory-mapped files), "
        "activations (in main memory between forward and backward); several with commas.",
    )
    fsdp: bool = Field(
        default=False,
        description="Spread the model over the processes of torchrun (FSDP2): for models beyond one GPU.",
    )
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = Field(
        default="auto",
        description="Attention backend; auto is the model's own default. `whence check` measures what it costs.",
    )
    seed: int = Field(default=0, description="Seed of sampled labels and of the order in which rows are fitted.")
    trust_remote_code: bool = Field(
        default=False, description="Run Python code that comes with the model. Never implied."
    )
    allow_pickle_weights: bool = Field(
        default=False,
        description="Read .bin weights (restricted unpickler) when there are no safetensors. Never implied.",
    )

    @field_validator("damping", mode="before")
    @classmethod
    def _number_is_relative(cls, value: Any) -> Any:
        """A bare number means a relative damping, the only kind whose number travels between models."""
        try:
            number = float(value)
        except (TypeError, ValueError):
            return value
        return f"relative:{number:g}"

    @field_validator("checkpoints", mode="before")
    @classmethod
    def _several_folders(cls, value: Any) -> Any:
        return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else value

    @field_validator("layers", mode="before")
    @classmethod
    def _several_patterns(cls, value: Any) -> Any:
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, (list, tuple)):
            return value
        return tuple(p for part in given for p in (_patterns(part) if isinstance(part, str) else [part]))

    @field_validator("offload", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        given = [value] if isinstance(value, str) else value
        return tuple(word.strip() for part in given for word in str(part).split(",") if word.strip())

    @field_validator("fit_rows")
    @classmethod
    def _enough_rows(cls, value: str | int) -> str | int:
        if isinstance(value, int) and value < 2:
            raise ValueError("at least 2 rows are needed")
        return value

    @property
    def keep_factors(self) -> Literal["model", "memory", "disk"]:
        """Where ``offload`` keeps sums and factors."""
        return "disk" if "disk" in self.offload else "memory" if "factors" in self.offload else "model"

    @property
    def bad_rows_allowed(self) -> float:
        """``max_bad_rows`` as readers take it: a float is a share, a whole number a count."""
        return self.max_bad_rows if self.max_bad_rows < 1 else int(self.max_bad_rows)


class TraceRequest(BaseModel):
    """A whole ``trace``: model, data, question, where the answer goes, and the options. What ``-c`` reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Model: a folder, a hub id, id@revision, or a PEFT adapter folder.")
    data: tuple[str, ...] = Field(
        min_length=1,
        description="Training rows: .jsonl[.gz] .json .parquet .csv, a saved dataset or a hub name; name=path.",
    )
    query: tuple[str, ...] = Field(
        default=(), description="File of questions, in any of the row shapes. May be repeated."
    )
    prompt: str | None = Field(default=None, description="The text the model was given.")
    response: str | None = Field(default=None, description="What it answered: the text to explain.")
    against: str | None = Field(
        default=None,
        description="Another response: explains why the one rather than the other (their logit difference).",
    )
    pretrained: str | None = Field(
        default=None, description="The model that fine-tuning started from: asks its training rows as well."
    )
    pretrained_data: tuple[str, ...] = Field(default=(), description="Rows that model was trained on, as --data.")
    pretrained_size: int | None = Field(
        default=None, ge=1, description="Rows that model was trained on, where --pretrained-data are only some of them."
    )
    alpha: float | Literal["auto"] = Field(
        default="auto",
        description="Pull of fine-tuning towards the pre-trained weights; auto goes by the trainer's learning rates.",
    )
    out: str | None = Field(default=None, description="Folder for the run: scores, provenance, report.")
    report: str | None = Field(default=None, description="Write the HTML report to this file too.")
    options: TraceOptions = Field(default=TraceOptions())

    @field_validator("data", "query", "pretrained_data", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class SweepOptions(BaseModel):
    """What ``whence damping`` tries, and what it scores it against."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    values: tuple[str, ...] = Field(
        default=(), description="Dampings of one kind to try (default: relative, 1e-4 to 100 in half decades)."
    )
    sample: int = Field(default=256, ge=3, description="Training rows whose gradients are kept and compared.")
    questions: int = Field(default=16, ge=1, description="Most questions to use.")
    reference: Literal["auto", "pbrf", "none"] = Field(
        default="auto",
        description="Score against an exact Gauss-Newton matrix of the smallest layers (auto), or also against "
        "proximal retrainings of sampled rows (pbrf; many passes: small models).",
    )
    reference_damping: str = Field(default="relative:0.01", description="Damping of that reference.")
    retrained: int = Field(default=24, ge=3, description="Rows retrained for the reference pbrf.")
    bank: str | None = Field(
        default=None,
        description="Retrained models: a folder of `whence evaluate lds --bank`, or an .npz with kept "
        "(M x rows, booleans) and losses (M x questions, nats).",
    )

    @field_validator("values", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        parts = value.split(",") if isinstance(value, str) else value
        return tuple(str(part).strip() for part in parts)


class PlanOptions(BaseModel):
    """What ``whence plan`` plans, and how long it may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job: Literal["auto", "trace", "index"] = Field(
        default="auto", description="trace or index; auto: a trace when there is a question, else an index."
    )
    budget: float = Field(default=10.0, gt=0, description="Of an index: KB (1,000 bytes) kept of each row, at most.")
    scheme: str = Field(default="auto", description="Of an index: sparse, low_rank, int8, fp16 or auto.")
    calibrate: float = Field(
        default=5.0,
        ge=0,
        description="About how many seconds of the real work may be tried out (0: the model is not run).",
    )


def _patterns(text: str) -> list[str]:
    """Layer patterns from a list with commas; a comma in brackets is one of a pattern's characters (``*.[1,2].*``)."""
    return [found.strip() for found in re.findall(r"(?:\[!?\]?[^\]]*\]|[^,])+", text) if found.strip()]


def plan_options(**given: Any) -> PlanOptions:
    """Options of a plan.

    Raises:
        OptionError: a setting that does not exist or cannot have this value.
    """
    return _validated(PlanOptions, {k: v for k, v in given.items() if v is not None})


def describe(field: str) -> str:
    """The description of a setting, for the help text."""
    for record in (TraceRequest, TraceOptions, SweepOptions, PlanOptions):
        if field in record.model_fields:
            return record.model_fields[field].description or ""
    raise KeyError(field)


def trace_options(options: TraceOptions | Mapping[str, Any] | None = None, **overrides: Any) -> TraceOptions:
    """Options from a record or mapping with some replaced.

    Raises:
        OptionError: a setting that does not exist or cannot have this value.
    """
    base = options.model_dump(exclude_unset=True) if isinstance(options, TraceOptions) else dict(options or {})
    return _validated(TraceOptions, {**base, **overrides})


def trace_request(flat: Mapping[str, Any]) -> TraceRequest:
    """A request from one flat mapping, as YAML files and the command line give it.

    Raises:
        OptionError: an unknown or missing key, or a value that cannot be.
    """
    flat = dict(flat)
    options = flat.pop("options", {}) or {}
    if not isinstance(options, Mapping):
        raise OptionError(f"options: {options!r}", wanted="a mapping of settings", try_="options: {method: ekfac}")
    own = {k: v for k, v in flat.items() if k in TraceRequest.model_fields}
    rest = {k: v for k, v in flat.items() if k not in TraceRequest.model_fields}
    return _validated(TraceRequest, {**own, "options": trace_options({**options, **rest})})


def sweep_options(**given: Any) -> SweepOptions:
    """Options of a damping sweep.

    Raises:
        OptionError: a setting that does not exist or cannot have this value.
    """
    return _validated(SweepOptions, {k: v for k, v in given.items() if v is not None})


def read_config(path: str | Path) -> dict[str, Any]:
    """Settings from a YAML file, or from the ``run.json`` of an earlier run (which replays it).

    Raises:
        OptionError: no such file, not YAML, or not a mapping.
    """
    path = Path(path).expanduser()
    path = path / "run.json" if path.is_dir() else path
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES and path.name != "run.json":
            raise OptionError(f"{path} is {path.stat().st_size} bytes", wanted="a small YAML file of settings")
        text = path.read_text("utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}", wanted="a YAML file of settings") from error
    except (yaml.YAMLError, ValueError) as error:
        raise OptionError(f"{path} is not YAML: {error}", wanted="lines such as `method: ekfac`") from error
    if isinstance(found, dict) and "request" in found and "format" in found:
        found = found["request"]
    if not isinstance(found, dict):
        raise OptionError(f"{path} holds a {type(found).__name__}", wanted="a mapping: lines such as `method: ekfac`")
    return {str(key).replace("-", "_"): value for key, value in found.items()}


def command_line(request: TraceRequest) -> str:
    """The command that makes this request, with only what differs from the defaults."""
    words = ["whence", "trace"]
    given = request.model_dump(exclude_defaults=True)
    options = given.pop("options", {})
    for name, value in {**given, **options}.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, Mapping):
            words += [word for key, theirs in value.items() for word in ("--column", f"{key}={theirs}")]
        elif isinstance(value, (list, tuple)):
            words += [word for part in value for word in (flag, str(part))]
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def _validated(record: type[Record], values: Mapping[str, Any]) -> Record:
    try:
        return record.model_validate(dict(values))
    except ValidationError as error:
        raise _phrased(error, record) from error


def _phrased(error: ValidationError, record: type[BaseModel]) -> OptionError:
    """The first thing that is wrong, in our words."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in first["loc"][:1]) or record.__name__
    known = [name for name in record.model_fields if name != "options"]
    if first["type"] == "extra_forbidden":
        return OptionError(f"unknown option {path!r}", wanted="an option of this verb", try_=did_you_mean(path, known))
    if first["type"] == "missing":
        return OptionError(
            f"no {path} given", wanted=describe(path), try_=f"--{path} ... or `{path}:` in the YAML file"
        )
    message = first["msg"].removeprefix("Value error, ")
    return OptionError(f"{path} = {first['input']!r}: {message}", wanted=describe(path))
