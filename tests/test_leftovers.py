"""What killed processes leave of files is removed by the next that writes in the folder; what is being written stays."""

import fcntl
import json
import multiprocessing
import os
import shutil
import signal

import pytest
from helpers import files_of_at_most
from PIL import Image

from configs.errors import WriteError
from diffusion.data.sets.folder import Folder
from diffusion.runs import checkpoint, files
from diffusion.runs.files import append_whole, make_folder, write_whole
from scripts.prepare_data import prepare
