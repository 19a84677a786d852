"""The store: round trips, merging, locks, and complaints that name the line."""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fagen import yamlfile
from fagen.entryfile import read_file, to_text
from fagen.errors import StoreError
from fagen.model import Entry, Measurement, Problem
from fagen.store import Store, candidate, distance, staleness
from fagen.target import KNOWN_TARGETS, Target
from fagen.workload import Workload
from tests.unit.synthetic import FAMILY, PROBLEM, TARGET, WORKLOAD, Config, FakeRenderer

MEASUREMENT = Measurement(812.3456789, 810.0, 815.0, 60, 0.4123456, "o", 1980.0, 677.123456, 0)


def entry(
    problem: Problem = PROBLEM, target: Target = TARGET, workload: Workload = WORKLOAD,
    config: Config = Config(), median_us: float = 800.0,  # noqa: B008
) -> Entry:
    measurement = dataclasses.replace(MEASUREMENT, median_us=median_us)
    return Entry(
        problem, target, workload, "synthetic", dataclasses.asdict(config), measurement,
        {"sha256": "00123456789e10", "registers": 168},
        ({"tie": True, "slower": 0.0123456, "family": "synthetic", "config": {"block_m": 64}},),
        {"source": "12e456", "compiler": "nvcc 13.0.88", "driver": "12.10", "date": "2026-11-20",
         "search": {"tried": 60, "failures": {"run: WrongResult": 2}}},
    )


def test_what_is_put_is_found(tmp_path: Path) -> None:
    store = Store([], tmp_path)
    path = store.put(entry())
    assert path == tmp_path / "synthetic" / "fwd-bf16-d128-causal.yaml"
    (found,) = store.entries()
    assert found.measurement.median_us == 800.0
    assert found.measurement.tflops == 677.12  # five digits are kept
    assert found.provenance == entry().provenance
    assert store.find(PROBLEM, TARGET, WORKLOAD) == found


def test_putting_again_replaces_and_keeps_the_others(tmp_path: Path) -> None:
    store, longer = Store([], tmp_path), Workload(1, 32, 8, 16384, 16384)
    store.put(entry(workload=longer), entry())
    first = store.path_for(entry()).read_text()
    store.put(entry(median_us=700.0))
    assert {str(e.workload): e.measurement.median_us for e in store.entries()} == {
        str(WORKLOAD): 700.0, str(longer): 800.0,
    }
    store.put(entry())
    assert store.path_for(entry()).read_text() == first


def test_what_was_learned_here_goes_before_what_was_shipped(tmp_path: Path) -> None:
    shipped, mine = tmp_path / "shipped", tmp_path / "mine"
    Store([], shipped).put(entry(median_us=900.0))
    store = Store([shipped], mine)
    assert store.entries()[0].measurement.median_us == 900.0
    store.put(entry(median_us=850.0))
    assert [e.measurement.median_us for e in store.entries()] == [850.0]


def test_a_stale_entry_of_ones_own_gives_way_to_a_fresh_shipped_one(tmp_path: Path) -> None:
    shipped, mine = tmp_path / "shipped", tmp_path / "mine"
    Store([], shipped).put(entry(median_us=900.0))
    Store([], mine).put(entry(median_us=850.0))
    stale = {850.0}
    store = Store([shipped], mine, lambda e: e.measurement.median_us in stale)

    def found() -> float:
        chosen = store.find(PROBLEM, TARGET, WORKLOAD)
        assert chosen is not None
        return chosen.measurement.median_us

    assert found() == 900.0
    stale.clear()
    assert found() == 850.0
    stale |= {850.0, 900.0}
    assert found() == 850.0


names = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)
scalars = (
    st.booleans() | st.integers(-(2**40), 2**40) | names
    | st.sampled_from(["12.10", "1e3", "0x1f", "2026-11-20", "off", "null", "~", "=", "1_000", "y"])
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda f: float(f"{f:.5g}"))
)
documents = st.dictionaries(
    names, st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=6),
    max_size=4,
)


@settings(max_examples=40)
@given(
    target=st.sampled_from(sorted(KNOWN_TARGETS.values(), key=lambda t: t.name)),
    head_dim=st.integers(1, 32), config=documents, provenance=documents, binary=documents,
    weight=st.sampled_from([1.0, 0.25, 3.5]), batch=st.integers(1, 99),
)
def test_a_file_round_trips(
    tmp_path_factory: pytest.TempPathFactory, target: Target, head_dim: int, weight: float,
    batch: int, config: dict[str, Any], provenance: dict[str, Any], binary: dict[str, Any],
) -> None:
    problem = Problem.parse(f"bwd-fp16-d{8 * head_dim}-window31")
    given = dataclasses.replace(
        entry(problem, target, Workload(batch, 8, 4, 77, 99, weight)),
        config=config, provenance=provenance, binary=binary,
    )
    path = tmp_path_factory.mktemp("store") / f"{problem}.yaml"
    path.write_text(to_text([given]), encoding="utf-8")
    (read,) = read_file(path)
    assert to_text([read]) == to_text([given])
    assert (read.problem, read.target, read.workload) == (problem, target, given.workload)
    assert (read.config, read.provenance, read.binary) == (config, provenance, binary)


def test_a_runner_up_is_one_line_with_its_distance_first() -> None:
    lines = to_text([entry()]).splitlines()
    at = lines.index("  runners_up:")
    assert lines[at + 1].startswith("  - {tie: true, slower: 0.012346, ")
    assert lines[at + 2] == "  provenance:"


def test_texts_that_other_readers_would_misread_are_quoted() -> None:
    for text in ("12.10", "12e456", "2026-11-20", "off", "yes", "null", "0755", "1e3", "a: b", "",
                 "y", "deadbeef", "é"):
        assert yamlfile.dump({"key": text}) == f'key: "{text}"\n'


# --- nearness ----------------------------------------------------------------------------------


def test_find_prefers_the_same_hardware_then_the_nearest_workload(tmp_path: Path) -> None:
    store = Store([], tmp_path)
    other = dataclasses.replace(TARGET, name="cut-down", sm_count=78)
    short, long = Workload(4, 32, 8, 1024, 1024), Workload(4, 32, 8, 32768, 32768)
    store.put(entry(workload=short))
    store.put(entry(workload=long))
    store.put(entry(target=other))
    assert _found(store, TARGET, Workload(4, 32, 8, 2048, 2048)) == ("synthetic", str(short))
    assert _found(store, TARGET, WORKLOAD) == ("synthetic", str(long))
    assert _found(store, other, Workload(4, 32, 8, 2048, 2048)) == ("cut-down", str(WORKLOAD))
    like = dataclasses.replace(TARGET, name="new", sm_count=80)
    assert _found(store, like, short) == ("cut-down", str(WORKLOAD))
    assert store.find(PROBLEM, Target.known("a100"), WORKLOAD) is None
    assert store.find(Problem.parse("bwd-bf16-d128-causal"), TARGET, WORKLOAD) is None


def _found(store: Store, target: Target, workload: Workload) -> tuple[str, str]:
    found = store.find(PROBLEM, target, workload)
    assert found is not None
    return found.target.name, str(found.workload)


def test_a_cpu_takes_only_entries_whose_instructions_it_has(tmp_path: Path) -> None:
    store = Store([], tmp_path)
    old, new = Target.known("x86-64-v3"), Target.known("x86-64-v4")
    store.put(entry(target=new))
    assert store.find(PROBLEM, old, WORKLOAD) is None
    store.put(entry(target=old))
    assert _found(store, old, WORKLOAD)[0] == "x86-64-v3"
    assert _found(store, Target.known("x86-64-v4-bf16"), WORKLOAD)[0] == "x86-64-v4"


def test_distance_is_a_distance() -> None:
    assert distance(WORKLOAD, WORKLOAD) == 0
    longer = dataclasses.replace(WORKLOAD, seqlen_q=16384, seqlen_kv=16384)
    more = dataclasses.replace(WORKLOAD, batch=8)
    assert distance(WORKLOAD, longer) == distance(longer, WORKLOAD) == 2
    assert 0 < distance(WORKLOAD, more) < distance(WORKLOAD, longer)


def test_same_label_with_other_facts_gets_its_own_folder(tmp_path: Path) -> None:
    store = Store([], tmp_path)
    slice_of_it = dataclasses.replace(TARGET, sm_count=60)
    assert store.put(entry()).parent.name == "synthetic"
    folder = store.put(entry(target=slice_of_it)).parent.name
    assert folder.startswith("synthetic-")
    assert len(store.entries()) == 2
    assert store.put(entry(target=slice_of_it)).parent.name == folder


# --- kernels from entries ----------------------------------------------------------------------


def test_staleness_says_why() -> None:
    renderer: Any = FakeRenderer()
    digest = renderer.render(candidate(entry(), [FAMILY])).digest
    fresh = dataclasses.replace(entry(), provenance={"source": digest})
    assert staleness(fresh, renderer, [FAMILY]) == ""
    assert "source changed" in staleness(entry(), renderer, [FAMILY])
    gone = dataclasses.replace(fresh, config={**fresh.config, "swizzle": 3})
    assert "swizzle" in staleness(gone, renderer, [FAMILY])
    illegal = dataclasses.replace(fresh, config={**fresh.config, "warps": 16})
    assert "16 rows" in staleness(illegal, renderer, [FAMILY])
    with pytest.raises(StoreError, match="names the family 'synthetic'"):
        candidate(entry(), [])


# --- damage ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("find", "replace", "says"),
    [
        ("schema: 1", "schema: 2", "line 2: the file has schema 2"),
        ("schema: 1\n", "", "the key 'schema' is missing"),
        ("problem: fwd", "problem: \"fwd-\\tx\" #", "cannot read the problem"),
        ("problem: fwd-bf16-d128", "problem: fwd-bf16-d64", "stands in a file named"),
        ("median_us: 800.0", "median_us: fast", "median_us is 'fast', which is not a num"),
        ("samples: 60", "samples: true", "samples is True"),
        ("kind: cuda", "kind: cuda\n  kind: cuda", "'kind' stands twice"),
        ("name: synthetic", "name: ../../etc", "target name"),
        ("family: synthetic", "family: *a", ""),
        ("family: synthetic", "family: !!python/name:os.system", "could not determine"),
        ("  family: synthetic", "  family: synthetic\n  extra: 1", "unknown key 'extra'"),
        ("entries:\n", "entries: 3\nrest:\n", ""),
        ("- workload: ", "- workload: 7 # ", "workload is 7"),
        ("b4-h32x8-s8192", "b4-h32x5-s8192", "not a multiple"),
        ("target:\n", "target: [\n", ""),
    ],
)
def test_a_damaged_file_names_file_line_and_remedy(
    tmp_path: Path, find: str, replace: str, says: str
) -> None:
    path = Store([], tmp_path).put(entry())
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, replace, 1))
    with pytest.raises(StoreError) as caught:
        Store([], tmp_path).entries()
    assert str(path) in caught.value.message
    assert ", line " in caught.value.message
    assert says in caught.value.message
    assert "git checkout" in str(caught.value.hint)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = Store([], tmp_path).put(entry())
    path.write_bytes(b"\xff\xfe\x00" + path.read_bytes())
    with pytest.raises(StoreError, match="not UTF-8"):
        Store([], tmp_path).entries()


def _put_many(root: Path, first: int) -> None:
    store = Store([], root)
    for n in range(first, first + 4):
        store.put(entry(workload=Workload(n + 1, 8, 8, 128, 128)))


def test_two_writers_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_put_many, args=(tmp_path, 4 * n)) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(Store([], tmp_path).entries()) == 12
    assert [p.name for p in (tmp_path / "synthetic").iterdir()] == [f"{PROBLEM}.yaml"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    store = Store([], tmp_path)
    before = store.put(entry()).read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(StoreError, match="untouched"):
            store.put(entry(median_us=1.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.path_for(entry()).read_text() == before
    assert [p.name for p in (tmp_path / "synthetic").iterdir()] == [f"{PROBLEM}.yaml"]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be"):
        Store([], tmp_path / "file").put(entry())
