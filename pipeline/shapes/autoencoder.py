"""The autoencoder: diffusers' AutoencoderKL with factor 4, from 64 x 64 pixels to 16 x 16 x 4 latents."""

from diffusers import AutoencoderKL

LATENT_CHANNELS, LATENT_SIZE = 4, 16


def build_autoencoder() -> AutoencoderKL:
    """Return an untrained autoencoder of images [B, 3, 64, 64] in -1..1."""
    return AutoencoderKL(
        block_out_channels=(8, 16, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=64,
    )
