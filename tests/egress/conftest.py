"""The stand-in Claude server for these tests."""

from tests.fakes.claude.fixtures import claude, claude_url

__all__ = ["claude", "claude_url"]
