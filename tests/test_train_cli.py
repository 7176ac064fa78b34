"""`train.py` explains each error of the user in one sentence."""

import pytest

from jaxseg.commands.train import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.py"], "There is no config file nowhere.py"),
        (["--config", "configs/demo_shapes.py", "--config.train.stepz=3"], "Did you mean steps?"),
        (["--config", "configs/yolact_r50.py", "--config.data.root=nowhere"], "nowhere"),
    ],
)
def test_the_command_answers_a_users_mistake_in_one_sentence(arguments, message, capsys, tmp_path):
    assert main([*arguments, "--workdir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()
