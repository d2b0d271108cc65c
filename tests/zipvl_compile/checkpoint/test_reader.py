"""Checkpoints of a tiny LLaVA: names, values, faults, identity, and the hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants, errors
from huggingface_hub.utils._paths import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from zipvl_compile.checkpoint import hashes as checkpoint_hashes
from zipvl_compile.checkpoint.names import canonical_name, is_computed
from zipvl_compile.checkpoint.reader import Checkpoint
from zipvl_serving.errors import InputError, ZipvlError

PROJECTOR = "model.multi_modal_projector.linear_1.weight"


def tiny_llava(tied: bool) -> Any:
    vision = CLIPVisionConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=40, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=12, tie_word_embeddings=tied,
    )  # fmt: skip
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=3, tie_word_embeddings=tied)
    )


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    return tiny_llava(tied=False).half()


@pytest.fixture(scope="module")
def saved(model: Any, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Read-only checkpoints of `model`: one file, and many shards."""
    root = tmp_path_factory.mktemp("saved")
    model.save_pretrained(root / "single")
    model.save_pretrained(root / "sharded", max_shard_size="2KB")
    return SimpleNamespace(single=root / "single", sharded=root / "sharded")


@pytest.fixture
def single(saved: SimpleNamespace, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(saved.single, tmp_path / "single"))


@pytest.fixture
def sharded(saved: SimpleNamespace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved.sharded, tmp_path / "sharded"))


def fails(call: Callable[[], object], message: str, kind: type[ZipvlError] = ZipvlError) -> None:
    """`call` raises exactly `kind`, with `message` in its single line."""
    with pytest.raises(ZipvlError) as caught:
        call()
    assert type(caught.value) is kind
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def rewrite(directory: Path, rename: Callable[[str], str], **more: torch.Tensor) -> None:
    """Store the weights under other names, with `more` tensors."""
    path = directory / "model.safetensors"
    save_file({rename(name): t for name, t in load_file(path).items()} | more, path)


# --- names and values ---


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_names_shapes_and_values_are_the_models(model: Any, saved: SimpleNamespace, layout: str) -> None:
    checkpoint = Checkpoint.open(getattr(saved, layout))
    state = model.state_dict()
    assert checkpoint.names() == sorted(state)
    assert checkpoint.architecture == "LlavaForConditionalGeneration"
    assert checkpoint.config["text_config"]["hidden_size"] == 8
    assert checkpoint.revision is None
    for name, tensor in state.items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert checkpoint.dtype(name) == "F16"
        assert torch.equal(checkpoint.load(name), tensor)
        loaded = checkpoint.load(name, torch.float32)
        assert loaded.dtype == torch.float32 and torch.equal(loaded, tensor.float())
    checkpoint.verify({name: tuple(tensor.shape) for name, tensor in state.items()})


def test_a_tied_head_is_optional(tmp_path: Path) -> None:
    model = tiny_llava(tied=True)
    model.save_pretrained(tmp_path)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    checkpoint = Checkpoint.open(str(tmp_path))
    assert set(shapes) - set(checkpoint.names()) == {"lm_head.weight"}
    checkpoint.verify(shapes, optional=["lm_head.weight"])
    fails(lambda: checkpoint.verify(shapes), "missing tensor 'lm_head.weight'")


def published(name: str) -> str:
    """The spelling of the LLaVA-1.5 checkpoints on the hub."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


@pytest.mark.parametrize("rename", [published, canonical_name], ids=["published", "in-memory"])
def test_other_spellings_are_the_same_checkpoint(model: Any, single: Path, rename: Callable[[str], str]) -> None:
    computed = {
        rename("vision_tower.embeddings.position_ids"): torch.arange(5),
        rename("language_model.model.layers.0.self_attn.rotary_emb.inv_freq"): torch.ones(2),
    }
    rewrite(single, rename, **computed)
    checkpoint = Checkpoint.open(single)
    state = model.state_dict()
    assert checkpoint.names() == sorted(state)
    assert all(torch.equal(checkpoint.load(name), tensor) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("stored", "canonical"),
    [
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("language_model.model.norm.weight", "model.language_model.norm.weight"),
        ("language_model.norm.weight", "model.language_model.norm.weight"),
        ("vision_tower.vision_model.pre_layrnorm.bias", "model.vision_tower.pre_layrnorm.bias"),
        ("model.vision_tower.vision_model.pre_layrnorm.bias", "model.vision_tower.pre_layrnorm.bias"),
        ("vision_tower.pre_layrnorm.bias", "model.vision_tower.pre_layrnorm.bias"),
        ("multi_modal_projector.linear_1.bias", "model.multi_modal_projector.linear_1.bias"),
        ("language_models.x", "language_models.x"),
        ("adapter.language_model.model.x", "adapter.language_model.model.x"),
    ],
)
def test_canonical_name(stored: str, canonical: str) -> None:
    assert canonical_name(stored) == canonical
    assert canonical_name(canonical) == canonical


def test_computed_buffers_are_whole_names() -> None:
    assert is_computed("position_ids") and is_computed("a.rotary_emb.inv_freq")
    assert not is_computed("a.position_ids.weight") and not is_computed("a.my_position_ids")


def test_loaded_tensors_do_not_write_to_the_file(single: Path) -> None:
    checkpoint = Checkpoint.open(single)
    before = checkpoint.load(PROJECTOR).clone()
    checkpoint.load(PROJECTOR).zero_()
    assert torch.equal(checkpoint.load(PROJECTOR), before)


# --- verify ---


def test_verify_names_the_first_of_each_fault(model: Any, saved: SimpleNamespace) -> None:
    checkpoint = Checkpoint.open(saved.single)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    del shapes["lm_head.weight"]
    shapes |= {"b": (1,), "a": (1,), PROJECTOR: (16, 8)}
    fails(
        lambda: checkpoint.verify(shapes),
        "missing tensor 'a' (+1 more); surplus tensor 'lm_head.weight'; "
        f"tensor '{PROJECTOR}' has shape (8, 16), expected (16, 8)",
    )
    optional = {"a", "b", "lm_head.weight"}
    fails(lambda: checkpoint.verify(shapes, optional), f"LlavaForConditionalGeneration: tensor '{PROJECTOR}' has shape")


def test_unknown_tensor(saved: SimpleNamespace) -> None:
    checkpoint = Checkpoint.open(saved.single)
    calls: list[Callable[[str], object]] = [checkpoint.load, checkpoint.shape, checkpoint.dtype]
    for call in calls:
        fails(partial(call, "nope"), "has no tensor 'nope'")


# --- what cannot be opened ---


@pytest.mark.parametrize(
    "source", ["", "/nowhere/x", "./x/y", "x", "a/b/c", "~/nowhere-at-all", Path("a/b"), "x" * 5000]
)
def test_not_found(source: str | Path) -> None:
    message = "expected a directory with config.json and *.safetensors, or a hub id owner/name"
    fails(lambda: Checkpoint.open(source), f"checkpoint not found: {str(source)!r}; {message}", InputError)


def test_a_file_or_an_empty_directory_is_no_checkpoint(saved: SimpleNamespace, tmp_path: Path) -> None:
    fails(lambda: Checkpoint.open(saved.single / "config.json"), "checkpoint not found", InputError)
    fails(lambda: Checkpoint.open(tmp_path), f"no config.json in {tmp_path}", InputError)


def test_a_revision_needs_a_hub_id(saved: SimpleNamespace) -> None:
    fails(lambda: Checkpoint.open(saved.single, "main"), "is for a hub id", InputError)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b'{"a": ', "config.json is not valid JSON: Expecting value: line 1 column 7"),
        (b"\xff", "config.json is not valid JSON"),
        (b"[]", "config.json is damaged: expected a JSON object"),
        (b"{}", "config.json names no architecture"),
        (b'{"architectures": []}', "config.json names no architecture"),
        (b'{"architectures": "Llava"}', "config.json names no architecture"),
    ],
)
def test_bad_config(single: Path, config: bytes, message: str) -> None:
    (single / "config.json").write_bytes(config)
    fails(lambda: Checkpoint.open(single), message)


def test_weights_absent_pickled_or_truncated(single: Path) -> None:
    weights = single / "model.safetensors"
    size = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(size - 1)
    fails(lambda: Checkpoint.open(single), f"{weights} is truncated or damaged: header says {size} bytes, the file has")
    weights.unlink()
    fails(lambda: Checkpoint.open(single), f"no weights in {single}")
    (single / "pytorch_model.bin").touch()
    fails(lambda: Checkpoint.open(single), "has pickled weights only (pytorch_model.bin): convert to safetensors")


def test_a_file_damaged_after_opening_is_named(single: Path) -> None:
    checkpoint = Checkpoint.open(single)
    (single / "model.safetensors").write_bytes(b"x")
    fails(lambda: checkpoint.load(PROJECTOR), f"cannot read tensor '{PROJECTOR}' from {single}/model.safetensors")
    (single / "model.safetensors").unlink()
    fails(lambda: checkpoint.load(PROJECTOR), "cannot read tensor")
    fails(checkpoint.identity, f"cannot read {single}/model.safetensors: No such file")


def test_two_spellings_of_one_tensor(single: Path) -> None:
    rewrite(single, lambda name: name, **{"lm_head.weight": torch.ones(1)})
    fails(
        lambda: Checkpoint.open(single),
        "has tensor 'lm_head.weight' twice: as 'language_model.lm_head.weight' and 'lm_head.weight'",
    )


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "model.safetensors.index.json is not valid JSON"),
        ("{}", "expected a 'weight_map'"),
        ('{"weight_map": {"x": 1}}', "expected a 'weight_map'"),
        ('{"weight_map": {"x": "../y.safetensors"}}', "a shard that is not in its own directory: '../y.safetensors'"),
        ('{"weight_map": {"x": "p", "y": "q"}}', "missing shard 'p' (+1 more) in "),
        ('{"weight_map": {"x": "SHARD", "y": "SHARD"}}', "missing tensor 'x' in SHARD (+1 more) of "),
    ],
)
def test_bad_index(sharded: Path, index: str, message: str) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[0].name
    (sharded / "model.safetensors.index.json").write_text(index.replace("SHARD", shard))
    fails(lambda: Checkpoint.open(sharded), message.replace("SHARD", shard))


def test_a_missing_or_truncated_shard_is_named(sharded: Path) -> None:
    shard = sorted(sharded.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    fails(lambda: Checkpoint.open(sharded), f"{shard} is truncated or damaged")
    shard.unlink()
    fails(lambda: Checkpoint.open(sharded), f"missing shard '{shard.name}' in {sharded}")


# --- identity ---


def test_processor_files(single: Path) -> None:
    there = ["chat_template.jinja", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "README.md"]
    for name in there:
        (single / name).touch()
    (single / "tokenizer").mkdir()
    names = [path.name for path in Checkpoint.open(single).processor_files()]
    assert names == sorted([*there[:-1], "config.json", "generation_config.json"])


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_identity_covers_every_file(saved: SimpleNamespace, layout: str) -> None:
    directory = getattr(saved, layout)
    done: list[int] = []
    identity = Checkpoint.open(directory).identity(progress=done.append)
    assert identity == {
        "source": str(directory),
        "revision": None,
        "files": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()},
    }
    assert sum(done) == sum(path.stat().st_size for path in directory.iterdir())


def test_unchanged_files_are_hashed_once(single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    sha256 = checkpoint_hashes._sha256

    def spy(path: Path, progress: Callable[[int], None] | None) -> str:
        hashed.append(path.name)
        return sha256(path, progress)

    monkeypatch.setattr(checkpoint_hashes, "_sha256", spy)
    memo = tmp_path / "cache" / "new"
    checkpoint = Checkpoint.open(single)

    first = checkpoint.identity(memo)
    assert len(hashed) == len(first["files"])
    hashed.clear()
    assert checkpoint.identity(memo) == first and not hashed

    config = single / "config.json"
    config.write_bytes(config.read_bytes()[:-1] + b" ")  # of the same size
    os.utime(config, ns=(0, 1))
    changed = checkpoint.identity(memo)
    assert hashed == ["config.json"] and changed["files"]["config.json"] != first["files"]["config.json"]

    (memo_file,) = memo.iterdir()
    for damage in ("{", "[]", json.dumps({str(config): ["x"]})):
        memo_file.write_text(damage)
        hashed.clear()
        assert checkpoint.identity(memo) == changed and len(hashed) == len(first["files"])


def test_the_memo_survives_concurrent_writers_and_forgets_lost_files(tmp_path: Path) -> None:
    memo = tmp_path / "memo"
    files = [tmp_path / str(i) for i in range(24)]
    for file in files:
        file.write_text(file.name)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda file: checkpoint_hashes.hash_files([file], memo), files))
    (memo_file,) = memo.iterdir()
    assert set(json.loads(memo_file.read_text())) <= {str(file.resolve()) for file in files}

    checkpoint_hashes.hash_files(files, memo)
    files[0].unlink()
    files[1].write_text("changed")
    checkpoint_hashes.hash_files(files[1:], memo)
    assert set(json.loads(memo_file.read_text())) == {str(file.resolve()) for file in files[1:]}


def test_an_unwritable_memo_does_not_stop_a_build(saved: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    checkpoint = Checkpoint.open(saved.single)
    assert checkpoint.identity(tmp_path / "file") == checkpoint.identity()


# --- the hub ---

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("revision", [None, "main", COMMIT])
def test_the_hubs_cache_works_offline(
    saved: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str | None
) -> None:
    repository = tmp_path / "models--owner--name"
    shutil.copytree(saved.single, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    checkpoint = Checkpoint.open("owner/name", revision)
    assert checkpoint.revision == COMMIT
    assert checkpoint.identity()["source"] == "owner/name"
    fails(lambda: Checkpoint.open("owner/other"), "a local checkpoint directory works too")


def _hub_error(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)  # the real ones want an HTTP response
    error.args = ("first line\nsecond line",)
    return error


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (_hub_error(errors.GatedRepoError), InputError, "'owner/name' is gated"),
        (_hub_error(errors.RepositoryNotFoundError), InputError, "the hub has no 'owner/name' that you may read"),
        (_hub_error(errors.RevisionNotFoundError), InputError, "'owner/name' has no revision 'v1'"),
        (errors.LocalEntryNotFoundError("Got: ConnectError: x\nmore"), ZipvlError, "from the hub (ConnectError: x)"),
        (TimeoutError(), ZipvlError, "(TimeoutError); a local checkpoint directory works too"),
        (OSError(28, "No space left on device"), ZipvlError, "No space left on device"),
    ],
)  # fmt: skip
def test_hub_failures(monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[ZipvlError], message: str) -> None:
    def snapshot_download(hub_id: str, **options: object) -> str:
        assert (hub_id, options["revision"]) == ("owner/name", "v1")
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    fails(lambda: Checkpoint.open("owner/name", "v1"), message, kind)


def test_only_what_a_build_reads_is_fetched(saved: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {"config.json", "model.safetensors", "chat_template.jinja", "tokenizer.model", "tokenizer_config.json"}
    unwanted = {"pytorch_model.bin", "README.md", "onnx/config.json", "original/model.safetensors"}

    def snapshot_download(hub_id: str, revision: str | None, **patterns: Any) -> str:
        assert set(filter_repo_objects(sorted(wanted | unwanted), **patterns)) == wanted
        return str(saved.single)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert Checkpoint.open("owner/name").directory == saved.single
