"""Data sets: loading and splitting them, batches, augmentation, and stand-ins that need no files."""

from labutils.data.archives import ArchiveError, DownloadError
from labutils.data.loading import ImageData, Split, StandInWarning, batches, load_data
