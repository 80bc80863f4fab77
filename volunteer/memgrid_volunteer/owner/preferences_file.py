"""volunteer.toml in the home: read again whenever it changes, and the last good one kept while it has errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memgrid.errors import InvalidError
from memgrid_volunteer.owner.files import Stamp, replace_text, stamp_of
from memgrid_volunteer.owner.preferences import Preferences, Preset
from memgrid_volunteer.owner.preferences_toml import PREFERENCES_BYTES_MAX, changed, read_preferences, value_of

PREFERENCES_FILE = "volunteer.toml"
LAST_GOOD_FILE = ".volunteer-last-good.toml"


class PreferencesFile:
    """The owner's preferences as they are on disk now; without a file, those of the preset `polite`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / PREFERENCES_FILE
        self._last_good = folder / LAST_GOOD_FILE
        self._stamp: Stamp | None = None
        self._is_read = False
        self._current: Preferences | None = None
        self.problems: tuple[str, ...] = ()
        """What is wrong with the file as it stands, one line each; the preferences are then the last good ones."""

    def current(self) -> Preferences:
        """What holds now; cheap while the file stays as it is.

        Raises InvalidError when the file has errors and never was good: then nobody knows what its owner wants.
        """
        stamp = stamp_of(self.path)
        if not self._is_read or stamp != self._stamp:
            self._read()
            self._stamp, self._is_read = stamp, True
        if self._current is None:
            raise InvalidError("\n".join(self.problems))
        return self._current

    def set(self, key: str, value_text: str) -> Preferences:
        """Set one key; everything else in the file stays. Raises InvalidError, and then nothing has changed."""
        return self._change(key, value_of(value_text))

    def unset(self, key: str) -> Preferences:
        """Leave one key to the preset again."""
        return self._change(key, None)

    def choose(self, preset: Preset) -> Preferences:
        """Another preset; what the file says beside it still goes before it."""
        return self._change("preset", preset.value)

    def replace(self, text: str) -> Preferences:
        """Another text for the whole file. Raises InvalidError, and then nothing has changed."""
        preferences = read_preferences(text, self.path.name)
        replace_text(self.path, text)
        self._is_read = False
        return preferences

    def _change(self, key: str, value: Any) -> Preferences:
        return self.replace(changed(self.text(), key, value))

    def text(self) -> str:
        """The file as it is; empty when there is none. Raises InvalidError when it is no text."""
        try:
            with self.path.open("rb") as file:
                return file.read(PREFERENCES_BYTES_MAX + 1).decode()
        except FileNotFoundError:
            return ""
        except UnicodeDecodeError:
            raise InvalidError(f"{self.path.name}: not UTF-8 text") from None
        except OSError as error:
            raise InvalidError(f"{self.path.name}: can't be read: {error.strerror}") from None

    def _read(self) -> None:
        try:
            text = self.text()
            self._current, self.problems = read_preferences(text, self.path.name), ()
        except InvalidError as error:
            self.problems = tuple(str(error).splitlines())
            self._current = self._current or self._remembered()
            return
        self._remember(text)

    def _remember(self, text: str) -> None:
        if text != self._text_of_last_good():
            try:
                replace_text(self._last_good, text)
            except OSError:
                # A full disk: this process goes on with what it has read, which is good.
                return

    def _remembered(self) -> Preferences | None:
        """What held when the file was last good, perhaps in another process."""
        text = self._text_of_last_good()
        try:
            return None if text is None else read_preferences(text, LAST_GOOD_FILE)
        except InvalidError:
            return None

    def _text_of_last_good(self) -> str | None:
        try:
            return self._last_good.read_text()
        except (OSError, UnicodeDecodeError):
            return None
