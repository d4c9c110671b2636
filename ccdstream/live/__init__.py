"""Analysis of a picture as it comes: the newest frame wins, delay is bounded, a lost signal is a
gap.

    source -> capture -> session -> recorder, journal, gallery -> report
                            |
                          board -> page, window, metrics

`capture` reads in a thread of its own and keeps only the newest frame. `session` takes what is
newest and does with it what a run does: look, score, fuse, alert, draw. `board` holds what is shown
right now, for everyone who watches.
"""
