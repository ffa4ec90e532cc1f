"""Gymnasium environments; their ids are in `serl_robots.registration`."""
