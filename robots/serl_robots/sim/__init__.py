"""The MuJoCo back end."""
