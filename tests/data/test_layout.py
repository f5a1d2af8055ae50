import pytest

from configs.errors import UserError
from diffusion.data.files.layout import layout


def files(**counts: int) -> list[str]:
    return [f"{folder}/{number:03d}.png" for folder, count in counts.items() for number in range(count)]


def held_out(names: list[str], share: float = 0.1) -> list[str]:
    return [names[row] for row in layout(names, "auto", share).test]


def test_celeba_splits_at_nine_thousand():
    names = [f"{number:06d}.jpg" for number in range(1, 10_001)]
    found = layout(names, "auto", 0.1)
    assert names[found.train[-1]] == "009000.jpg"
    assert names[found.test[0]] == "009001.jpg"
    assert found.labels is None
    assert found.names is None


def test_each_class_holds_out_its_last():
    names = files(a=10, b=25, c=2, d=1)
    assert held_out(names) == ["a/009.png", "b/023.png", "b/024.png", "c/001.png"]
    found = layout(names, "auto", 0.1)
    assert len(found.train) + len(found.test) == len(names)


def test_at_least_one_of_each_class_trains():
    assert held_out(files(a=3, b=2), 0.99) == ["a/001.png", "a/002.png", "b/001.png"]


def test_a_class_keeps_its_split_when_another_grows():
    before, after = held_out(files(a=20, b=10)), held_out(files(a=20, b=100, c=5))
    assert [name for name in before if name[0] == "a"] == [name for name in after if name[0] == "a"]


def test_official_splits_are_taken():
    names = ["test/a/1.png", "test/b/1.png", "train/a/1.png", "train/b/1.png", "train/b/2.png"]
    found = layout(names, "auto", 0.1)
    assert found.test.tolist() == [0, 1]
    assert found.train.tolist() == [2, 3, 4]
    assert found.names == ["a", "b"]
    assert found.labels.tolist() == [0, 1, 0, 1, 1]


def test_official_splits_without_classes():
    found = layout(files(test=2, train=3), "auto", 0.1)
    assert found.names is None
    assert found.test.tolist() == [0, 1]


def test_folders_in_common_are_looked_through():
    found = layout(["deep/er/" + name for name in files(a=3, b=3)], "auto", 0.1)
    assert found.names == ["a", "b"]
    assert layout(files(img=10), "auto", 0.1).names is None


def test_labels_demanded_but_not_there():
    with pytest.raises(UserError, match=r"data\.labels=false"):
        layout(["a.png", "b.png"], True, 0.1)


def test_images_beside_the_class_folders():
    with pytest.raises(UserError, match=r"1 images beside the class folders, such as stray\.png"):
        layout([*files(a=2, b=2), "stray.png"], "auto", 0.1)
    assert layout([*files(a=2, b=2), "stray.png"], False, 0.1).names is None
