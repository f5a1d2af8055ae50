"""Measure a trained model: ``python evaluate.py run=runs/cold_blur_digits/1a2b3c4d``."""

from thaw.commands import evaluate

if __name__ == "__main__":
    evaluate()
