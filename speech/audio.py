"""``speech.sound.audio`` under the name of an earlier release, kept for one more."""

from speech.sound.audio import *  # noqa: F403
from speech.sound.audio import AudioHeader, check_regular_file, read_audio_header, resolve_inside

inside, check_plain, info, Info = resolve_inside, check_regular_file, read_audio_header, AudioHeader
