"""`python -m runyard` is the same as `runyard`."""

from runyard.cli import main

if __name__ == "__main__":
    main()
