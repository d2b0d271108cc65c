"""Run zipvl-compile from a checkout."""

from zipvl_compile.cli import app

if __name__ == "__main__":
    app()
