"""The lists of CelebA's attributes: which of forty things are true of each photo."""

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int64

from configs.errors import UserError

ATTRIBUTES = (
    "5_o_Clock_Shadow", "Arched_Eyebrows", "Attractive", "Bags_Under_Eyes", "Bald", "Bangs", "Big_Lips", "Big_Nose",
    "Black_Hair", "Blond_Hair", "Blurry", "Brown_Hair", "Bushy_Eyebrows", "Chubby", "Double_Chin", "Eyeglasses",
    "Goatee", "Gray_Hair", "Heavy_Makeup", "High_Cheekbones", "Male", "Mouth_Slightly_Open", "Mustache", "Narrow_Eyes",
    "No_Beard", "Oval_Face", "Pale_Skin", "Pointy_Nose", "Receding_Hairline", "Rosy_Cheeks", "Sideburns", "Smiling",
    "Straight_Hair", "Wavy_Hair", "Wearing_Earrings", "Wearing_Hat", "Wearing_Lipstick", "Wearing_Necklace",
    "Wearing_Necktie", "Young")
"""CelebA's names, in its order (Liu et al. 2015, arXiv 1411.7766)."""

LIST, ARCHIVE = "list_attr_celeba.txt", "attributes.npz"
NUMBERS = {"-1": -1, "0": 0, "1": 1}


@dataclass(frozen=True)
class AttributeList:
    """What a list of attributes says.

    :ivar path: of the file
    :ivar values: a row for each photo of the list, a column for each of ``ATTRIBUTES``
    :ivar places: the row of each photo, by its name without folder and ending
    """

    path: Path
    values: Bool[np.ndarray, "m a"]
    places: Mapping[str, int]

    def choose(self, photos: Sequence[str]) -> Bool[np.ndarray, "n a"]:
        """The rows of these photos.

        :param photos: their paths
        :raises UserError: if the list lacks one
        """
        return self.values[find_rows(self.path, self.places, photos)]


def find_rows(path: Path, places: Mapping[str, int], photos: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """The rows of photos in a list of CelebA.

    :param path: of the list, for messages
    :param places: the row of each photo, by its name without folder and ending
    :param photos: their paths
    :raises UserError: if the list lacks one
    """
    rows = [places.get(Path(photo).stem) for photo in photos]
    missing = [photo for photo, row in zip(photos, rows, strict=True) if row is None]
    if missing:
        raise UserError(f"{len(missing)} photos such as {missing[0]} without a row in {path}",
                        "a row for each photo", "the whole list, the photos that belong to it, or data.signals=[]")
    return np.array(rows, np.int64)


def read_attributes(*folders: Path) -> AttributeList:
    """The list in the first of these folders that has one: ``list_attr_celeba.txt``, a line with the number of photos,
    one with the names of the attributes, then the name of a photo and its values in each; or ``attributes.npz`` with
    ``names`` (40,) and ``values`` (n, 40), where row ``i - 1`` belongs to the photo of number i. Values are -1 and 1,
    or 0 and 1.

    :raises UserError: if there is none, or it is something else
    """
    path = next((folder / name for folder in folders for name in (LIST, ARCHIVE) if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"data.signals=[attributes] without {LIST} or {ARCHIVE} in "
                        f"{' or '.join(map(str, folders))}", "one of the two beside the photos",
                        "put it there, or data.signals=[]")
    try:
        names, values, photos = _read_archive(path) if path.name == ARCHIVE else _read_list(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}: {error})",
                        "40 names, and 40 values for each photo", "copy or download it again") from error
    if tuple(names) != ATTRIBUTES:
        strangers = [name for name in names if name not in ATTRIBUTES]
        what = f"an attribute {strangers[0]}" if strangers else f"{len(names)} attributes, not all or in another order"
        raise UserError(f"{path} with {what}", f"CelebA's {len(ATTRIBUTES)}, {ATTRIBUTES[0]} to {ATTRIBUTES[-1]}",
                        "copy or download it again")
    signs = set(np.unique(values).tolist())
    if not (signs <= {-1, 1} or signs <= {0, 1}):
        raise UserError(f"{path} with the values {', '.join(map(str, sorted(signs)[:5]))}", "-1 and 1, or 0 and 1",
                        "copy or download it again")
    places = {photo: row for row, photo in enumerate(photos)}
    if len(places) < len(photos):
        raise UserError(f"{path} with {len(photos) - len(places)} photos that it names twice", "one row for each photo",
                        "copy or download it again")
    return AttributeList(path, values == 1, places)


def _read_list(path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    _, head, *lines = (line.split() for line in path.read_text().splitlines() if line.strip())
    odd = next((line for line in lines if len(line) != len(head) + 1), None)
    if odd is not None:
        raise ValueError(f"{len(odd) - 1} values of {odd[0]} for {len(head)} attributes")
    strange = next((value for line in lines for value in line[1:] if value not in NUMBERS), None)
    if strange is not None:
        raise ValueError(f"the value {strange}, neither -1 or 1 nor 0 or 1")
    values = np.array([[NUMBERS[value] for value in line[1:]] for line in lines], np.int8)
    return head, values.reshape(len(lines), len(head)), [Path(line[0]).stem for line in lines]


def _read_archive(path: Path) -> tuple[list[str], np.ndarray, list[str]]:
    with np.load(path, allow_pickle=False) as found:
        names, values = found["names"], found["values"]
    if names.ndim != 1 or values.ndim != 2 or values.dtype.kind not in "biuf" or values.shape[1] != len(names):
        raise ValueError(f"names {names.shape} and values {values.shape} of {values.dtype}")
    return names.astype(str).tolist(), values, [f"{number:06d}" for number in range(1, len(values) + 1)]
