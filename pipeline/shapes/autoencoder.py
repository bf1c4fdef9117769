"""The autoencoder: diffusers' AutoencoderKL with factor 8, from 64 x 64 pixels to 8 x 8 x 4 latents."""

from diffusers import AutoencoderKL


def build_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder of images [B, 3, 64, 64] in -1..1."""
    return AutoencoderKL(
        block_out_channels=(8, 16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        sample_size=64,
    )
