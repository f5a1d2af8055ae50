"""Captions and numbers beside images: every layout says the same, and what does not fit is refused before decoding."""

import json
import logging

import numpy as np
import pytest
import torch
from pictures import fill, zipped

from configs.errors import UserError
from configs.registry import build
from diffusion.data import Folder
from diffusion.data.files import archive as archives
from diffusion.data.files import index as indexing
from diffusion.runs.identity import extract_identity
from models.text import TextReader

FILES = {"cats/A.PNG": 0, "cats/b.png": 1, "dogs/c.png": 2, "dogs/d.v1.png": 3}
CAPTIONS = {"cats/A.PNG": "a Cat, a cat", "cats/b.png": "the cat", "dogs/c.png": "", "dogs/d.v1.png": "a <s0> Dog"}
# a 3 times, cat 3 times, then dog and the once; 0 pad, 1 begin, 2 end, 3 <s0>
WORDS = ["<pad>", "<bos>", "<eos>", *(f"<s{i}>" for i in range(8)), "a", "cat", "dog", "the"]
TOKENS = {"cats/A.PNG": [1, 11, 12, 11, 12, 2], "cats/b.png": [1, 14, 12, 2, 0, 0], "dogs/c.png": [1, 2, 0, 0, 0, 0],
          "dogs/d.v1.png": [1, 11, 3, 13, 2, 0]}


@pytest.fixture
def root(tmp_path):
    return fill(tmp_path / "images", FILES)


def write(root, name, text):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())


def csv_of(captions, head="", end="\n"):
    return head + "".join(f'{file},"{caption}"{end}' for file, caption in captions.items())


def jsonl_of(captions, **more):
    return "\n".join(json.dumps({"file_name": file, "text": text, **more}) for file, text in captions.items()) + "\n"


def within(folder):
    return {file.removeprefix(folder): text for file, text in CAPTIONS.items() if file.startswith(folder)}


def write_texts(root):
    for name, ending in (("cats/A", "TXT"), ("cats/b", "txt"), ("dogs/c", "txt"), ("dogs/d.v1", "txt")):
        caption = next(text for file, text in CAPTIONS.items() if file.startswith(f"{name}."))
        write(root, f"{name}.{ending}", "\ufeff\r\n  " + caption.replace(" ", " \t ") + "\r\n")
    write(root, "cats/.b.txt", "hidden")


LAYOUTS = {
    "texts": write_texts,
    "csv": lambda root: write(root, "captions.csv", csv_of(CAPTIONS)),
    "csv with names": lambda root: write(root, "Captions.CSV", csv_of(CAPTIONS, "File,Caption\n")),
    "csv of Windows": lambda root: write(root, "captions.csv", "\ufeff" + csv_of(
        {file.replace("/", "\\"): text for file, text in CAPTIONS.items()}, "file,caption\r\n", "\r\n")),
    "csv with more columns": lambda root: write(root, "metadata.csv", "id,caption,file_name\n" + "".join(
        f'7,"{text}",./{file}\n' for file, text in CAPTIONS.items())),
    "jsonl": lambda root: write(root, "captions.jsonl", jsonl_of(CAPTIONS)),
    "metadata of each folder": lambda root: [write(root, f"{folder}metadata.jsonl", jsonl_of(within(folder), id=3))
                                             for folder in ("cats/", "dogs/")],
    "a table goes before texts": lambda root: [write(root, "cats/b.txt", "something else"),
                                               write(root, "captions.csv", csv_of(CAPTIONS))],
}


def read(root, signals=("text",), **more):
    return Folder(root, size=8, cache=False, signals=signals, held_out=0.5, **more)


def tokens(data) -> dict[str, list[int]]:
    return {file: row for name in ("train", "test")
            for file, row in zip(data.files(name), data.split(name).signals["text"].tolist(), strict=True)}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_say_the_same(root, tmp_path, layout, packed):
    LAYOUTS[layout](root)
    data = read(zipped(root, tmp_path / "images.zip") if packed else root)
    assert tokens(data) == TOKENS
    assert data.described["text"] == {"words": WORDS, "length": 6}
    assert data.class_names == ["cats", "dogs"]
    assert data.split("train").signals["text"].dtype == torch.int64
    reader = TextReader(**data.described["text"])
    assert {file: reader.encode(caption).tolist() for file, caption in CAPTIONS.items()} == TOKENS


def test_archives_that_are_splits(tmp_path):
    """Each with a table of its own; the vocabulary is that of both."""
    (tmp_path / "both").mkdir()
    for split, caption in (("train", "a cat"), ("test", "a dog")):
        root = fill(tmp_path / split, {"a.png": 0, "b.png": 1})
        write(root, "metadata.jsonl", jsonl_of({"a.png": caption, "b.png": caption}))
        zipped(root, tmp_path / "both" / f"{split}.zip")
    data = read(tmp_path / "both", labels=False)
    assert data.described["text"]["words"][11:] == ["a", "cat", "dog"]
    assert data.split("test").signals["text"].tolist() == [[1, 11, 13, 2]] * 2


def test_without_the_signal_nothing_has_changed(root, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = Folder(root, size=8)
    assert before.described.keys() == {"label"}
    assert "data.signals" not in caplog.text
    fingerprint = before.fingerprint()
    write_texts(root)
    plain = Folder(root, size=8)
    assert plain.fingerprint() == fingerprint
    assert plain.split("train").signals.keys() == {"label"}
    assert caplog.text.count("data.signals=[text]") == 1
    assert read(root).fingerprint() not in (fingerprint, read(root, words=1).fingerprint())
    assert not plain.index.broken


def test_runs_that_began_before_there_were_captions_go_on():
    node = {"_target_": "diffusion.data.sets.folder.Folder", "size": 64}
    quiet = {"signals": [], "words": 4096, "length": None}
    old, new, told, fewer, other = ({"precision": 32, "data": {**node, **more}} for more in (
        {}, quiet, {**quiet, "signals": ["text"]}, {**quiet, "signals": ["text"], "words": 9},
        {"words": 4096, "length": None}))
    assert extract_identity(old) == extract_identity(new)
    assert len({str(extract_identity(each)) for each in (old, told, fewer, other)}) == 4


def test_rare_words_and_long_captions(root, caplog):
    """The most frequent words stay, in the order of the alphabet where they are as frequent."""
    write(root, "captions.csv", csv_of(CAPTIONS))
    data = read(root, words=2)
    assert data.described["text"] == {"words": WORDS[:13], "length": 6}
    assert tokens(data)["cats/b.png"] == [1, 12, 2, 0, 0, 0]
    assert "2 words such as dog" in caplog.text
    assert "left out of 2 captions" in caplog.text
    data = read(root, length=4)
    assert tokens(data) == {file: (row if row[3] in (0, 2) else [*row[:3], 2])[:4] for file, row in TOKENS.items()}
    assert "2 captions of more than 2 words are cut" in caplog.text
    write(root, "captions.csv", csv_of(dict.fromkeys(FILES, "word " * 500)))
    assert read(root).described["text"]["length"] == 77


def test_the_vocabulary_of_another_run(root, caplog):
    write(root, "captions.csv", csv_of(CAPTIONS | {"dogs/c.png": "<eos> <pad> zebra"}))
    words = [*WORDS[:11], "zebra", "cat"]
    data = read(root, words=words, length=5)
    assert data.described["text"] == {"words": words, "length": 5}
    assert tokens(data)["dogs/c.png"] == [1, 11, 2, 0, 0], "no caption has ends or pads inside"


@pytest.mark.parametrize(("ending", "more"), [("txt", "of 1 captions such as that of a.png the first line")])
def test_of_several_lines_the_first_is_taken(tmp_path, caplog, ending, more):
    root = fill(tmp_path, {"a.png": 0, "b.png": 1})
    write(root, "a.txt", "\na red bird\nsomething with wings\n")
    write(root, "b.txt", "a bird")
    assert read(root).described["text"]["words"][11:] == ["a", "bird", "red"]
    assert more in caplog.text


@pytest.mark.parametrize("signs", [(0, 1), (-1, 1)])
def test_attributes(root, signs):
    values = np.random.default_rng(0).integers(0, 2, (4, 3))
    write(root, "attributes.csv", "file,striped,old,shy one\n" + "".join(
        f"{file},{','.join(str(signs[value]) for value in row)}\n" for file, row in zip(FILES, values)))
    data = read(root, ["attributes"])
    assert data.described["attributes"] == {"words": ["striped", "old", "shy one"]}
    got = torch.cat([data.split(name).signals["attributes"] for name in ("train", "test")])
    order = [list(FILES).index(file) for name in ("train", "test") for file in data.files(name)]
    assert np.array_equal(got, values[order].astype(np.float32))
    assert got.dtype == torch.float32


def test_vectors_beside_captions(root):
    write(root, "captions.csv", csv_of(CAPTIONS))
    write(root, "vector.csv", "image,x,y\n" + "".join(f"{file},{i / 4},-1e3\n" for i, file in enumerate(FILES)))
    data = read(root, ["vector", "text"], labels=False)
    assert data.described["vector"] == {"in_dim": 2, "words": ["x", "y"]}
    assert data.split("train").signals["vector"].tolist() == [[0, -1000], [0.25, -1000]]
    assert data.split("test").signals.keys() == {"vector", "text"}
    assert len(read(root, ["vector"], labels=False).load("test").signals["vector"]) == 2


def test_rows_of_other_files_are_counted_and_broken_images_left_out(root, caplog):
    write(root, "captions.csv", csv_of(CAPTIONS | {"x\x1b[2J.png": "gone", "dogs": "no image"}))
    (root / "cats/b.png").write_bytes(b"no image")
    data = read(root)
    assert len(tokens(data)) == 3
    assert "names 2 files that are no images here" in caplog.text
    assert tokens(data).keys() == FILES.keys() - {"cats/b.png"}
    assert "the" not in data.described["text"]["words"]


NUMBERS = "file,x\n" + "".join(f"{file},1\n" for file in FILES)
BAD = {
    "nothing": ("text", {}, "without captions in"),
    "one text": ("text", {"cats/b.txt": "x"}, r"3 images such as cats/A\.PNG without a caption beside"),
    "missing rows": ("text", {"captions.csv": csv_of(within("cats/b"))}, r"4 images such as cats/A\.PNG without a row"),
    "twice": ("text", {"captions.csv": csv_of(CAPTIONS) + "./cats/b.png,x\n"}, r"1 files twice, such as cats/b\.png"),
    "in two tables": ("text", {"captions.csv": csv_of(CAPTIONS), "cats/captions.csv": "b.png,x\n"}, "1 files twice"),
    "columns": ("text", {"captions.csv": csv_of(CAPTIONS) + "cats/b.png,a cat, sitting\n"}, "line 5, with 3 columns"),
    "other names": ("text", {"metadata.csv": "file_name,width\na.png,3\n"}, "with the columns file_name, width"),
    "three columns": ("text", {"captions.csv": "a,b,c\n"}, "with the columns a, b, c"),
    "a quote": ("text", {"captions.csv": 'cats/b.png,"a cat\n'}, "cannot be read"),
    "empty": ("text", {"captions.csv": ""}, "with the first line"),
    "no text": ("text", {"captions.csv": b"\xff\xfea\x00"}, "no text in UTF-8"),
    "no text beside": ("text", {f"{file[:-4]}.txt": b"\xff" for file in FILES}, "no text in UTF-8"),
    "no json": ("text", {"captions.jsonl": "{}\n"}, "line 1, without a file name and a text"),
    "broken json": ("text", {"captions.jsonl": '{"file_name": "a.png", "text": \n'}, "line 1, without"),
    "a number": ("text", {"captions.jsonl": '{"file_name": "a.png", "text": 3}'}, "line 1, without"),
    "too large": ("text", {"captions.csv": csv_of(CAPTIONS) + "x" * 2000}, "cannot be read"),
    "no table": ("attributes", {"captions.csv": csv_of(CAPTIONS)}, r"without attributes\.csv"),
    "other numbers": ("attributes", {"attributes.csv": NUMBERS.replace("v1.png,1", "v1.png,0.5")}, "numbers 0.5"),
    "three values": ("attributes", {"attributes.csv": "file,x,y,z\n" + "".join(f"{f},-1,0,1\n" for f in FILES)},
                     "numbers -1, 0, 1"),
    "no number": ("vector", {"vector.csv": NUMBERS.replace("b.png,1", "b.png,y")}, r"cats/b\.png: could not"),
    "nan": ("vector", {"vector.csv": NUMBERS.replace("b.png,1", "b.png,nan")}, r"cats/b\.png with nan"),
    "infinite": ("vector", {"vector.csv": NUMBERS.replace("b.png,1", "b.png,1e99")}, r"cats/b\.png with 1e99"),
    "no head": ("vector", {"vector.csv": NUMBERS[7:]}, "with the first line"),
    "no columns": ("vector", {"vector.csv": "file\n"}, "with the columns file"),
    "equal columns": ("vector", {"vector.csv": "file,x,x\n"}, "with the columns file, x, x"),
    "other columns": ("vector", {"vector.csv": NUMBERS, "cats/vector.csv": "file,y\n"}, "with other columns"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_fit_is_refused_before_images_are_decoded(root, name, monkeypatch):
    signal, files, said = BAD[name]
    for path, content in files.items():
        write(root, path, content)
    monkeypatch.setattr(indexing, "index", lambda *_: pytest.fail("images were decoded"))
    monkeypatch.setattr(archives, "MOST_BYTES", 1500)
    with pytest.raises(UserError, match=said):
        read(root, [signal]).split("train")


@pytest.mark.parametrize("wrong", [{"signals": ["age"]}, {"signals": "text"}, {"signals": ["text", "text"]},
                                   {"words": 0}, {"words": ["a"]}, {"words": [*WORDS, "a"]}, {"length": 1}])
def test_wrong_settings(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        build("data", "folder", root="x", **wrong)
