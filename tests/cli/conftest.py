import pytest

from cvt.cli import main


@pytest.fixture
def run(capfd):
    """`run("show", "cvt_13")`: exit code, standard output and standard error of one call."""

    def call(*arguments):
        code = main([str(argument) for argument in arguments])
        return code, *capfd.readouterr()

    return call
