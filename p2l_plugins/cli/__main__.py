"""`python -m p2l_plugins.cli`."""

from p2l_plugins.cli import main

main()
