"""Reads the files of a run and shows them: table, front, statistics, page. Never imports torch, ray or smskd."""
