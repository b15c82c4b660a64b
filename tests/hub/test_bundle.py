"""One file out of many."""

import ast
import importlib
import sys
import textwrap

import pytest

from microdit.hub import bundle
from microdit.hub.bundle import bundled

MODULES = ["transformer", "words_text_encoder", "clip_text_encoder", "diffusion_pipeline"]


@pytest.mark.parametrize("name", MODULES)
def test_what_is_written_takes_nothing_from_this_package_and_defines_what_it_is_asked_for(name):
    text = bundled(f"microdit.hub.{name}")
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
    assert not {each.partition(".")[0] for each in modules} & {"microdit", "jaxtyping", "hydra", "lightning"}
    made: dict = {"__name__": __name__}
    exec(compile(text, name, "exec"), made)
    original = importlib.import_module(f"microdit.hub.{name}")
    assert {each for each in vars(original) if each.startswith("MicroDiT")} <= made.keys()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes modules of a package that is taken for ours."""
    (tmp_path / "house").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(bundle, "OURS", "house")

    def write(**modules: str) -> None:
        for name, text in modules.items():
            (tmp_path / "house" / f"{name}.py").write_text(textwrap.dedent(text))
        for name in [each for each in sys.modules if each.partition(".")[0] == "house"]:
            del sys.modules[name]
        importlib.invalidate_caches()

    return write


def test_only_what_is_needed_is_copied_in_the_order_of_its_modules_with_comments(package):
    package(
        below='''\
            import math
            from json import dumps

            # Why it is two.
            TWO, THREE = 2, 3

            def unused() -> str:
                return dumps({})

            def root(x: "Unknown") -> float:
                return math.sqrt(x) * TWO
            ''',
        above='''\
            from jaxtyping import Float
            from house.below import THREE, root

            def four(x: Float) -> float:
                return root(x) + THREE - 3
            ''',
    )  # fmt: skip
    text = bundled("house.above")
    made: dict = {}
    exec(text, made)
    assert made["four"](4) == 4
    assert text.count("TWO, THREE = 2, 3") == 1
    assert "# Why it is two." in text
    assert text.index("def root") < text.index("def four")
    assert "unused" not in text
    assert "dumps" not in text


@pytest.mark.parametrize(
    ("above", "told"),
    [
        ("from house.below import one as eins\ndef two():\n    return eins()", "under another name, eins"),
        ("def two():\n    from house.below import one\n    return one()", "imported inside a function"),
        ("for i in range(3):\n    print(i)", "line 1: this does more than define"),
        ("from house.below import one\ndef other():\n    return one()", "other is one thing in house."),
    ],
)
def test_what_cannot_be_copied_is_refused(package, above, told):
    package(below="def one():\n    return other()\n\ndef other():\n    return 1\n", above=above)
    with pytest.raises(ValueError, match=told):
        bundled("house.above")
