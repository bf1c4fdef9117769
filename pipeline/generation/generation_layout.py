"""The names of a batch generation's files: `images/CHUNK/IMAGE.png`, and `index/CHUNK.parquet` of a finished chunk.

An image is a file of its own, so that readers, tools and a browser open it without unpacking. On S3 that is one PUT
an image; the chunk adds one for its index, and nothing is listed or looked up. A folder for each chunk keeps a local
folder at `MAX_CHUNK` files, and spreads S3's limit of requests per prefix.
"""

from pipeline.storage import Folder

INDEX, IMAGES = "index", "images"
INDEX_FILE = "index.parquet"  # of all images, written at the end
PARTIAL = ".partial"  # the ending of a local file that is being written


def name_chunk(chunk: int) -> str:
    """Return the name of a chunk's folder of images."""
    return f"{chunk:06d}"


def name_index_piece(chunk: int) -> str:
    """Return the name of a chunk's file in the index folder."""
    return f"{name_chunk(chunk)}.parquet"


def name_image(chunk: int, image: int) -> str:
    """Return the path of an image in the folder."""
    return f"{IMAGES}/{name_chunk(chunk)}/{image:09d}.png"


def remove_partial_files(folder: Folder) -> None:
    """Delete what a killed process was writing to a local folder; on S3 there is no such file."""
    for name in folder.list_files() if folder.is_local else ():
        if name.endswith(PARTIAL):
            folder.remove(name)
