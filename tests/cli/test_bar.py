from rich.progress import Progress

from cvt.cli.output import Bar, image_bar


def test_each_stage_begins_anew():
    progress = Progress(disable=True)
    bar = Bar(progress)
    bar.stage("features of train")
    bar.start(10)
    bar.advance(4)
    (task,) = progress.tasks
    assert (task.description, task.completed, task.total) == ("features of train", 4, 10)
    bar.start(3)
    assert (progress.tasks[0].completed, progress.tasks[0].total) == (0, 3)
    bar.stage("linear")
    (task,) = progress.tasks
    assert (task.description, task.completed, task.total) == ("linear", 0, None)


def test_nothing_is_shown_where_there_is_no_terminal(capfd):
    with image_bar(shown=True) as bar:
        bar.start(2)
        bar.advance(2)
    assert capfd.readouterr() == ("", "")
