import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from bessemer.errors import RecipeError
from bessemer.recipe.keys import fields_of, section_of
from bessemer.recipe.load import load, parse, shipped_names
from bessemer.recipe.schema import Recipe, Section
from bessemer.recipe.write import recipe_text, toml_text

SOURCES = """name = "a"
# comment
[pretrain]
lr = 3e-4
[[data.source]]
name = "x"
kind = "text"
[[data.source]]
name = "y"
kind = "text"
"""


def error_of(text: str, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.toml", list(overrides))
    return caught.value


@pytest.mark.parametrize(
    ("text", "problem", "fix"),
    [
        ('name="a"\n[pretrain]\nlrr = 3', "r.toml, line 3: unknown key `pretrain.lrr`", "`lr`"),
        ('name="a"\nlr = 3', "r.toml, line 2: unknown key `lr`", "`pretrain.lr`"),
        ('name="a"\n[modle]\nlayers=3', "r.toml, line 2: unknown key `modle`", "`model`"),
        ('name="a"\n[model]\nfrom_="x"', "r.toml, line 3: unknown key `model.from_`", "`from`"),
        ('name="a"\n\n[model]\nlayers = -3', "r.toml, line 4: `model.layers`", "default"),
        ('name="a"\n[model]\nlayers = "3"', "r.toml, line 3: `model.layers`", "without quotation marks"),
        ('name="a"\n[pretrain]\nlr = inf', "r.toml, line 3: `pretrain.lr`", "default"),
        ('name="a"\n[pretrain]\nschedule = "cosin"', "r.toml, line 3: `pretrain.schedule`", '"cosine"'),
        ('name="a"\n[model]\nsize = "huge"', "r.toml, line 3: `model.size`", "default"),
        ('name="a"\nmodel = 3', "r.toml, line 2: `model`", "default"),
        ("[model]\nlayers = 3", "`name` is missing", "at the top"),
        ('name="a"\n[model\nlayers = 3', "r.toml, line 2: not valid TOML", "key = value"),
        ('name="a"\n[model]\nlayers = 3\nlayers = 4', "r.toml, line 4: not valid TOML", "here or on line 3"),
        ('name="../b"', "r.toml, line 1: `name`", "change it"),
        (SOURCES.replace('kind = "text"\n[[', 'kind = "txt"\n[['), "line 7: `data.source.0.kind`", '"text"'),
        (SOURCES + 'paht = "x"', "r.toml, line 11: unknown key `data.source.1.paht`", "`path`"),
    ],
)
def test_mistake_is_told_with_its_line_and_what_was_meant(text: str, problem: str, fix: str) -> None:
    error = error_of(text)
    assert problem in error.problem
    assert fix in error.fix


def test_mistake_of_an_override_names_the_override() -> None:
    assert error_of(SOURCES, "pretrain.steps=-3").problem.startswith("--set pretrain.steps=-3: ")
    assert error_of(SOURCES, "pretrain.step=3").fix == "did you mean `steps`?"
    assert "not an assignment" in error_of(SOURCES, "pretrain.steps").problem
    assert "a list of 2" in error_of(SOURCES, "data.source.5.path=x").found


def test_value_that_may_be_of_two_types_gives_one_complaint() -> None:
    assert error_of(SOURCES, "pretrain.lr=fast").wanted == "a valid number or 'auto'"


def test_override_takes_toml_or_else_plain_text() -> None:
    recipe = parse(
        SOURCES,
        "r",
        ["model.size=30M", "pretrain.lr=1e-3", "data.source.1.path=a=b.txt", "pretrain.betas=[0.8, 0.9]",
         "finetune.data.path='x'", "name=2024", "deterministic=true"],
    )  # fmt: skip
    assert recipe.model.size == "30M"
    assert recipe.pretrain.lr == 1e-3
    assert recipe.data.source[1].path == "a=b.txt"
    assert recipe.pretrain.betas == (0.8, 0.9)
    assert recipe.finetune is not None and recipe.finetune.data is not None
    assert recipe.finetune.data.path == "x"
    assert recipe.name == "2024"
    assert recipe.deterministic is True


def test_override_cannot_smuggle_in_a_second_key() -> None:
    assert parse(SOURCES, "r", ['pretrain.schedule="wsd"', "data.source.0.path=1\nname = 'b'"]).name == "a"


def test_length_that_is_set_replaces_the_hours_in_the_file() -> None:
    text = 'name = "a"\n[pretrain]\nhours = 2.0\n'
    assert parse(text, "r", ["pretrain.steps=10"]).pretrain.hours is None
    assert parse(text, "r", ["pretrain.tokens=2M"]).pretrain.hours is None
    assert parse(text.replace("hours = 2.0", "steps = 3"), "r", ["pretrain.hours=1"]).pretrain.steps == "auto"
    both = parse(text, "r", ["pretrain.hours=1", "pretrain.steps=10"]).pretrain
    assert (both.hours, both.steps) == (1.0, 10)  # said twice at once: for the planner to refuse


def test_length_that_is_set_replaces_the_other_one_in_the_file() -> None:
    text = 'name = "a"\n[pretrain]\ntokens = "2B"\n'
    assert parse(text, "r", ["pretrain.steps=10"]).pretrain.tokens is None
    assert (
        parse(text.replace('tokens = "2B"', "steps = 3"), "r", ["pretrain.tokens=2M"]).pretrain.steps
        == "auto"
    )


def test_later_override_wins() -> None:
    assert parse(SOURCES, "r", ["seed=1", "seed=2"]).seed == 2


@pytest.mark.parametrize("name", shipped_names())
def test_canonical_text_of_a_shipped_recipe_loads_to_an_equal_recipe(name: str) -> None:
    loaded = load(name, ["pretrain.micro_batch=2"])
    again = parse(loaded.text, "again", [])
    assert again == loaded.recipe
    assert recipe_text(again) == loaded.text


def test_text_of_awkward_strings_loads_back() -> None:
    awkward = 'quote " backslash \\ tab \t newline \n del \x7f umlaut ü'
    values = {"name": "a", "data": {"source": [{"name": awkward, "kind": "text"}]}}
    recipe = Recipe.model_validate(values)
    assert parse(recipe_text(recipe), "x", []) == recipe
    assert toml_text({"a b": {"c": [1.5, True]}}) == '["a b"]\nc = [1.5, true]\n'


def test_file_gives_its_folder_as_base_and_tolerates_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('\ufeffname = "mine"\r\n[model]\r\nlayers = 2\r\n', encoding="utf-8")
    loaded = load(str(path), [])
    assert loaded.base == tmp_path
    assert loaded.recipe.model.layers == 2


def test_unknown_recipe_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean `llama-8b`"):
        load("lama-8b", [])
    (tmp_path / "mine.toml").write_text('name = "a"')
    with pytest.raises(RecipeError, match=r"mine\.toml"):
        load(str(tmp_path / "mien.toml"), [])


def test_file_that_is_not_utf8_is_refused_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "caf\xe9"')
    with pytest.raises(RecipeError, match="0xe9 at offset 11"):
        load(str(path), [])


def test_default_sections_are_what_checked_ones_would_be() -> None:
    sections = dict(default_sections(Recipe, ""))
    assert {"model", "pretrain", "data", "data.clean", "finetune.lora", "energy"} <= sections.keys()
    for path, field in sections.items():
        checked = type(field.default)()
        assert field.default == checked and field.default.model_fields_set == set(), path
        assert field.default.model_dump() == checked.model_dump(), path


def default_sections(section: type[Section], path: str) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in fields_of(section).items():
        if isinstance(field.default, Section):
            yield path + name, field
        inner = section_of(field)
        if inner is not None:
            yield from default_sections(inner, f"{path}{name}.")


def test_import_of_the_schema_builds_no_validator() -> None:
    code = "from bessemer.recipe.schema import Section; import sys\n"
    code += "sys.exit(any(each.__pydantic_complete__ for each in Section.__subclasses__()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_what_is_near_is_proposed_for_an_unknown_recipe(tmp_path: Path) -> None:
    for name, fix in (
        ("nosuch", "list them with `bessemer recipes`"),
        ("qwen", "did you mean `qwen-moe-30b-a3b`?"),
        ("llama8b", "did you mean `llama-8b`?"),
    ):
        with pytest.raises(RecipeError) as caught:
            load(name, [])
        assert caught.value.fix == fix
    (tmp_path / "mine.toml").write_text('name = "a"')
    with pytest.raises(RecipeError, match="begin with a copy"):
        load(str(tmp_path / "nosuch.toml"), [])


def test_list_of_sections_that_is_written_as_one_is_told_how_lists_are_written() -> None:
    one = 'name = "a"\n[data.source]\nname = "x"\nkind = "text"\npath = "x.txt"\n'
    error = error_of(one)
    assert error.wanted == "a list of sections" and error.fix.startswith("write [[data.source]];")
    mended = one.replace("[data.source]", "[[data.source]]")
    assert parse(mended, "r", []).data.source[0].path == "x.txt"
    error = error_of(one + one.partition("\n")[2])
    assert "stands twice" in error.problem and error.fix == "write [[data.source]] above the keys of each"
    assert len(parse(mended + mended.partition("\n")[2], "r", []).data.source) == 2
    assert "data.source.0 is the first" in error_of('name = "a"', "data.source.path=x.txt").fix
    words = [f"data.source.0.{word}" for word in ("name=x", "kind=text", "path=x.txt")]
    assert parse('name = "a"', "r", words).data.source[0].path == "x.txt"


@pytest.mark.parametrize(
    ("text", "fix"),
    [
        ("layers = 3\n[model]\nlayers = 3\nhidden = 4\nlayers = 4", "remove it here or on line 4"),
        ("[model]\nlayers = 3\n[data]\n[model] # again\nhidden = 4", "move its keys below that of line 2"),
        ("model.layers = 3\n[model]\nhidden = 4", "remove one of the two, or write the keys of a section"),
        ("model = { layers = 3, layers = 4 }", "remove one of the two, or write the keys of a section"),
    ],
)
def test_what_stands_twice_is_told_as_that(text: str, fix: str) -> None:
    error = error_of(f'name = "a"\n{text}\n')
    assert error.problem.endswith("stands twice") and error.wanted == "each key and each heading once"
    assert error.fix.startswith(fix)


def test_required_key_of_a_wrong_value_has_no_default_to_be_left_to() -> None:
    assert error_of("name = 5").fix == "change it"


def test_size_that_is_set_replaces_the_shape_in_the_file_and_a_shape_the_size() -> None:
    text = 'name = "a"\n[model]\nlayers = 2\nhidden = 64\nheads = 4\ncontext = 64\n'
    model = parse(text, "r", ["model.size=auto"]).model
    assert (model.size, model.layers, model.heads, model.context) == ("auto", None, None, 64)
    shape = ["model.layers=2", "model.hidden=64", "model.heads=4"]
    assert parse('name = "a"\n[model]\nsize = "3M"\n', "r", shape).model.size is None
    both = parse(text, "r", ["model.size=3M", "model.layers=3"]).model
    assert (both.size, both.layers) == ("3M", 3)  # said twice at once: for the planner to refuse
