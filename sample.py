"""Sample from a trained model, or restore images: ``python sample.py run=runs/ddpm_digits/1a2b3c4d``."""

from thaw.commands import sample

if __name__ == "__main__":
    sample()
