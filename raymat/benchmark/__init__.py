"""Anybody's mattes on the test nodules of a release: their files, their errors beside baselines, and a leaderboard."""
