"""`python -m sparsevit` is the `sparsevit` command."""

from sparsevit.cli.app import main

if __name__ == "__main__":
    main()
