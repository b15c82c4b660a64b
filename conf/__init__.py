"""Every choice a user has: a folder is a group, a file a choice. Hydra reads it as pkg://microdit.conf."""
