"""What tests of every tier share: makers of small models and pipes, worlds, waiting, ports."""
