"""Run the command with ``python -m include.cli`` where the package is not installed (images)."""

from include.cli import main

if __name__ == "__main__":
    main()
