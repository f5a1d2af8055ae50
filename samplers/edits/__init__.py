"""Edits, one file each: callbacks of the loop that change its images (``edit=`` of ``sample.py``)."""
