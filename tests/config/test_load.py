"""Reading recipes: bases, changes from the command line, and errors that say where and what."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rankdet.config.load import (
    RecipeError,
    dump,
    flatten,
    load_recipe,
    parse_recipe,
    shipped,
)
from rankdet.config.losses import ALRP, Dense, IoUFamily, RankSort, ScalarBalance
from rankdet.config.parts import Drops
from rankdet.config.text import read_yaml, write_yaml


def refused(*overrides: str, name: str | Path = "demo") -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(name, overrides)
    return str(error.value)


def criterion_of(*overrides: str, name: str | Path = "demo") -> object:
    return load_recipe(name, overrides).criterion


def write(folder: Path, text: str, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_values_are_yaml() -> None:
    recipe = load_recipe(
        "demo",
        ["optimizer.lr=1e-3", "training.ema=null", "model.anchors.ratios=[0.5, 1, 2]",
         "data.augment={kind: light, vertical_flip: true}", "data.workers=2",
         "description=a = b: c"[:17]],
    )  # fmt: skip
    assert recipe.optimizer.lr == 0.001
    assert recipe.training.ema is None
    assert recipe.model.anchors.ratios == (0.5, 1.0, 2.0)
    assert flatten(recipe)["data.augment.vertical_flip"] is True
    assert recipe.data.workers == 2
    assert recipe.description == "a = b"


def test_the_last_of_several_changes_counts() -> None:
    assert load_recipe("demo", ["optimizer.lr=1", "optimizer.lr=2"]).optimizer.lr == 2


def test_another_kind_comes_with_its_own_defaults() -> None:
    assert criterion_of("criterion.kind=rank_sort") == RankSort()
    # The keys of the old kind are gone, also those that both have.
    assert criterion_of("criterion.delta=0.3", "criterion.kind=rank_sort") == RankSort(delta=0.3)
    assert criterion_of("criterion.kind=rank_sort", name="atss_ap_giou-small") == RankSort()
    # The same kind changes nothing.
    same = criterion_of("criterion.kind=alrp", name="retinanet_r50_alrp")
    assert isinstance(same, ALRP)
    assert same.loc_ranking == "hard"


def test_kinds_are_set_before_what_depends_on_them() -> None:
    wanted = ScalarBalance(w_r=5.0)
    changed = criterion_of("criterion.balance.w_r=5", "criterion.balance.kind=scalar")
    assert isinstance(changed, ALRP)
    assert changed.balance == wanted
    changed = criterion_of(
        "criterion.box_weight=2", "criterion.box.kind=ciou", "criterion.kind=dense"
    )
    assert changed == Dense(box=IoUFamily(kind="ciou"), box_weight=2.0)


def test_a_group_can_be_given_as_a_whole() -> None:
    schedule = load_recipe("demo", ["schedule.decay={kind: drops, at: [0.5]}"]).schedule
    assert schedule.decay == Drops(at=(0.5,))
    assert schedule.steps == load_recipe("demo").schedule.steps


def test_epochs_and_steps_replace_each_other() -> None:
    schedule = load_recipe("demo", ["schedule.epochs=3"]).schedule
    assert (schedule.epochs, schedule.steps) == (3.0, None)
    schedule = load_recipe("retinanet_r50_alrp", ["schedule.steps=7"]).schedule
    assert (schedule.epochs, schedule.steps) == (None, 7)
    assert "exactly one of epochs and steps" in refused("schedule={steps: 3, epochs: 4}")
    assert "exactly one of epochs and steps" in refused("schedule.steps=null")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=1",
         "unknown key optimizer.learning_rate; did you mean optimizer.lr?"),
        ("lr=1", "unknown key lr; did you mean optimizer.lr?"),
        ("epochs=1", "unknown key epochs; did you mean schedule.epochs?"),
        ("batch_size=3", "unknown key batch_size; did you mean batch.size?"),
        ("optimiser.lr=1", "unknown key optimiser; did you mean optimizer?"),
        ("anchors.scale=1", "unknown key anchors; did you mean model.anchors?"),
        ("model.achors.scale=1", "unknown key model.achors; did you mean model.anchors?"),
        ("criterion.dleta=1", "unknown key criterion.dleta; did you mean criterion.delta?"),
        ("optimizer.foo=1", "unknown key optimizer.foo; known in optimizer: kind, lr, "),
        ("quux=1", "unknown key quux; known in a recipe: name, description, model, "),
        ("base=demo", "unknown key base"),
        ("criterion.balance.w_r=1",
         "unknown key criterion.balance.w_r of criterion.balance.kind gradient; it belongs to "
         "criterion.balance.kind scalar"),
        ("criterion.kind=rank_srt",
         'criterion.kind should be one of dense, alrp, rank_sort, free_anchor, paa, two_stage, '
         'got "rank_srt"; did you mean rank_sort?'),
        ("criterion.kind=[1]",
         "criterion.kind should be one of dense, alrp, rank_sort, free_anchor, paa, two_stage, "
         "got [1]"),
        ("criterion=alrp", 'criterion should be a group of keys, got "alrp"; did you mean '
         "criterion.kind?"),
        ("model=3", "model should be a group of keys, got 3"),
        ("model=null", "model should be a group of keys, got null"),
        ("optimizer.lr=fast", 'optimizer.lr: should be a valid number, got "fast"'),
        ("optimizer.lr='1'", 'optimizer.lr: should be a valid number (without quotes), got "1"'),
        ("optimizer.lr=-1", "optimizer.lr: should be greater than 0, got -1"),
        ("optimizer.lr=1e999", "optimizer.lr: should be a finite number, got Infinity"),
        ("optimizer.lr.x=1", 'optimizer.lr: should be a valid number, got {"x": 1}'),
        ("batch.size=8.0", "batch.size: should be a valid integer, got 8.0"),
        ("optimizer.kind=adam", "optimizer.kind: should be 'sgd' or 'adamw', got \"adam\""),
        ("schedule.balance_period=0",
         "schedule.balance_period: should be 'epoch' or should be greater than or equal to 1, "
         "got 0"),
        ("model.anchors.ratios=[1, x]",
         'model.anchors.ratios.1: should be a valid number, got "x"'),
        ("model.anchors.ratios=[]", "model.anchors.ratios: should have at least 1 item, got []"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_change_is_said(override: str, message: str) -> None:
    assert refused(override).startswith(f"--set {override}: {message}")


@pytest.mark.parametrize("override", ["optimizer.lr", "=3", "a..b=3", ".a=3", ""])
def test_a_change_needs_key_and_value(override: str) -> None:
    assert "should be KEY=VALUE" in refused(override)


def test_all_faults_are_listed() -> None:
    faults = refused("optimizer.lr=x", "batch.size=y").split("\n")
    assert [fault.partition(":")[0] for fault in faults] == [
        "--set batch.size=y", "--set optimizer.lr=x"
    ]  # fmt: skip


def test_a_fault_between_keys_names_what_was_changed_last() -> None:
    message = refused("batch.micro=3")
    assert message.startswith("--set batch.micro=3; recipe atss_alrp-small, line ")
    assert message.endswith("batch: size (8) must be a multiple of micro (3)")
    message = refused("model.centreness=true")
    assert message.startswith("model.centreness needs criterion.kind dense: alrp gives the branch")


def test_an_unknown_recipe_is_answered_with_those_there_are() -> None:
    message = refused(name="retinanet_r50_alpr")
    assert message.startswith("there is no recipe retinanet_r50_alpr; did you mean "
                              "retinanet_r50_alrp? (known: atss_alrp-small, ")  # fmt: skip
    assert "demo" in message
    assert "did you mean" not in refused(name="xyz")


def test_a_file_may_say_only_what_differs(tmp_path: Path) -> None:
    path = write(tmp_path, "base: demo\noptimizer:\n  lr: 1e-4\nbatch:\n")
    recipe = load_recipe(path)
    assert recipe.name == "mine"
    assert recipe.description == ""
    assert recipe.optimizer.lr == 1e-4
    # An empty group says nothing; it does not bring the defaults back.
    assert recipe.batch == load_recipe("demo").batch
    other = write(tmp_path, f"base: {path}\ncriterion:\n  kind: rank_sort\n", "other.yaml")
    assert load_recipe(other).criterion == RankSort()
    assert load_recipe(other).optimizer.lr == 1e-4


def test_without_a_base_the_rest_is_default(tmp_path: Path) -> None:
    path = write(tmp_path, "criterion:\n  tau: 0.4\nschedule:\n  steps: 5\noptimizer:\n")
    recipe = load_recipe(path, ["criterion.delta=0.5"])
    assert recipe.criterion == ALRP(tau=0.4, delta=0.5)
    assert recipe.optimizer == load_recipe("retinanet_r50_alrp").optimizer
    assert "exactly one of epochs and steps" in refused("schedule={}", name=write(tmp_path, "{}"))
    assert "schedule: Field required" in refused(name=write(tmp_path, "{}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: demo\n\noptimizer:\n  learning_rate: 1\n",
         ", line 4: unknown key optimizer.learning_rate; did you mean optimizer.lr?"),
        ("base: demo\noptimizer:\n  lr: fast\n", ", line 3: optimizer.lr: should be a valid numb"),
        ("base: demo\noptimizer: {lr: 1\n", ", line 3, column 1: expected ',' or '}'"),
        ("base: demo\na: b: c\n", ", line 2, column 5: mapping values are not allowed here"),
        ("base: demo\nbatch: {size: 8}\nbatch: {size: 9}\n",
         ", line 3, column 1: batch is given twice, first in line 2"),
        ("base: demo\nbatch: &x {size: 8}\ndata: *x\n", ", line 3, column 7: recipes have no ref"),
        ("base: demo\nname: !!python/name:os.system\n", ", line 2, column 7: could not determine"),
        ("base: [demo]\n", ', line 1: base should be the name of a recipe, got ["demo"]'),
        ("base: dmo\n", ", line 1: there is no recipe dmo; did you mean demo?"),
        ("base: no/such.yaml\n", ", line 1: cannot read the recipe no/such.yaml: No such file"),
        ("- demo\n", ' should hold the keys and values of a recipe, holds ["demo"]'),
        ("", " should hold the keys and values of a recipe, holds nothing"),
        ("a: 1\n---\nb: 2\n", ", line 2, column 1: but found another document"),
        ("base: demo\n1: 2\n", ", line 2: unknown key 1"),
        ("base: demo\nbatch: {size: 010}\n", ', line 2: batch.size: should be a valid integer'),
        ("base: demo\nmodel: {centreness: no}\n", ', line 2: model.centreness: should be a valid'),
        ("[" * 1_500, " is not valid YAML: maximum recursion depth"),
        ("base: demo\nbatch: {size: " + "9" * 5000 + "}", " is not valid YAML: "),
        ("a: \x00", " is not valid YAML: unacceptable character"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert refused(name=path).startswith(f"{path}{message}")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert refused(name=tmp_path / "none.yaml").endswith("none.yaml: No such file or directory")
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml" in refused(name=tmp_path / "folder.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert refused(name=binary) == f"{binary} is not a text in UTF-8"


def test_bases_in_a_circle_end(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    write(tmp_path, f"base: {path}\n")
    assert f"{path}, line 1: base follows base without end" in refused(name=path)


def test_a_resolved_recipe_is_complete_and_stays_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("demo", ["optimizer.lr=1e-5", "criterion.kind=dense"])
    text = dump(recipe)
    assert parse_recipe(text, source="somewhere") == recipe
    assert load_recipe(write(tmp_path, text)) == recipe
    assert "  lr: 1.0e-05\n" in text
    assert "    ratios: [1.0]\n" in text
    assert text.index("model:") < text.index("assigner:") < text.index("test:")
    assert parse_recipe(text, source="x", overrides=["batch.size=16"]).batch.size == 16
    with pytest.raises(RecipeError, match="somewhere, line 1: unknown key base"):
        parse_recipe("base: demo", source="somewhere")


def test_flat_keys_are_those_of_the_command_line() -> None:
    flat = flatten(load_recipe("demo"))
    for key, value in flat.items():
        text = write_yaml({"x": value}).removeprefix("x: ")
        assert flatten(load_recipe("demo", [f"{key}={text}"])) == flat


def test_the_shipped_recipes_are_listed() -> None:
    listed = dict(shipped())
    assert listed["demo"] == load_recipe("demo").description


@example("a\x85b\u2028c")
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_any_text_survives_being_written_down(name: str) -> None:
    tree = {"name": name, "list": [name, 1.5, None]}
    assert read_yaml(write_yaml(tree), "x")[0] == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001), ("1.", 1.0), (".5", 0.5), ("-2E+3", -2000.0), ("5", 5), ("-0", 0),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
        ("no", "no"), ("on", "on"), ("010", "010"), ("1:30", "1:30"), ("2020-01-01", "2020-01-01"),
        (".inf", ".inf"), (".nan", ".nan"), ("1_000", "1_000"), ("0x10", "0x10"), ("e5", "e5"),
        ("'5'", "5"),
    ],
)  # fmt: skip
def test_a_text_of_yaml_means_one_thing(text: str, value: object) -> None:
    read, _ = read_yaml(text, "x")
    assert read == value
    assert type(read) is type(value)
    assert read_yaml(write_yaml({"x": value}), "x")[0] == {"x": value}


def test_the_line_of_each_key_is_known() -> None:
    _, lines = read_yaml("# text\na:\n  b: 1\n\n  c: {d: 2}\n", "x")
    assert lines == {("a",): 2, ("a", "b"): 3, ("a", "c"): 5, ("a", "c", "d"): 5}
