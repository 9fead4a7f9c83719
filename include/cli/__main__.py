"""``python -m include.cli``: where the package is not installed, as in an image."""

from include.cli import main

if __name__ == "__main__":
    main()
