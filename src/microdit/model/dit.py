"""The diffusion transformer of "Stretching Each Dollar", with the parameter names of the released checkpoints."""

import math
from collections.abc import Sequence
from typing import Annotated, NamedTuple, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from microdit.kinds import Limits, Positive, Ratio, SettingsError, Share, Width
from microdit.masking.deferred import Deferred
from microdit.masking.naive import Naive
from microdit.masking.patches import KeptPatches, assemble_patches
from microdit.masking.token_path import MOST_BLOCKS, NetworkParts, TokenPath
from microdit.model.blocks import CaptionBlock, DiTBlock, FinalLayer, ReadCaptions
from microdit.model.embeddings import (
    CaptionEmbedding,
    NoiseEmbedding,
    NormedMLP,
    PatchEmbedding,
    QualityEmbedding,
    change_width,
    in_full_precision,
    sincos_position_table,
)
from microdit.model.feed_forward import ExpertChoice, GELUFeedForward, SwiGLU
from microdit.model.initialisation import initialise_attention_and_mlp, initialise_block, liken_keys_to_queries
from microdit.model.operations import product_type

DENSE_FEED_FORWARDS = {"swiglu": SwiGLU, "gelu": GELUFeedForward}


class CaptionMemory(NamedTuple):
    """All that captions tell the network, at any noise level; the last sample is the caption of zeros.

    `tokens` and `pooled` are what every caption becomes, `in_mixer` and `in_backbone` what each block has read there.
    `present`: what of the tokens is no padding, where the network does not attend to that.
    """

    tokens: Float[Tensor, "m l d"]
    pooled: Float[Tensor, "m d"]
    in_mixer: Sequence[ReadCaptions]
    in_backbone: Sequence[ReadCaptions]
    present: Bool[Tensor, "m l"] | None = None

    def without_captions(self) -> "CaptionMemory":
        """The same for samples none of which has a caption."""

        def forgotten(blocks: Sequence[ReadCaptions]) -> list[ReadCaptions]:
            return [read._replace(keys_and_values=read.keys_and_values[:0]) for read in blocks]

        return CaptionMemory(
            self.tokens[-1:],
            self.pooled[-1:],
            forgotten(self.in_mixer),
            forgotten(self.in_backbone),
            None if self.present is None else self.present[-1:],
        )


class Conditioning(NamedTuple):
    """What every block sees beside the patches: `vector` shifts, scales and gates, captions are attended to.

    `captions` are the tokens at the backbone's width, for token paths with blocks of their own. The network's blocks
    have an entry each: tokens at their width, or what they have read there. `present` are the tokens that are attended
    to, None: all of them.
    """

    vector: Float[Tensor, "n d"]
    captions: Float[Tensor, "n l d"]
    in_mixer: Sequence[Float[Tensor, "n l dm"] | ReadCaptions]
    in_backbone: Sequence[Float[Tensor, "n l d"] | ReadCaptions]
    present: Bool[Tensor, "n l"] | None = None


def caption_tokens_present(captions: Float[Tensor, "n l dc"]) -> Bool[Tensor, "n l"]:
    """The tokens that are not zeros, which padding is; all tokens of a caption that is nothing but zeros."""
    present = (captions != 0).any(dim=-1)
    return present | ~present.any(dim=1, keepdim=True)


class DiT(nn.Module):
    """Predicts F(x; noise, caption), which an objective turns into denoised latents, for all patches or for some.

    A token path leads the patches through. The paper's (deferred masking, section 3.2; masking/deferred.py): a light
    patch-mixer sees all patches, so that each learns of the others; then most are dropped, and the expensive backbone
    sees the rest. At mask ratio 0 and at inference all of them stay.

    Args:
        input_size: side of the square latents it is trained on (pixels / 8 for the paper's autoencoders). Other sizes,
            also non-square, work at inference.
        patch_size: latents a patch has on a side; both sides of the latents must be divisible by it.
        in_channels: channels of the latents.
        dim: width of the backbone. depth: its number of blocks. head_dim: channels of an attention head.
        multiple_of: hidden widths of feed-forward layers are rounded up to it.
        caption_channels: width of the text encoder's vectors.
        pos_interp_scale: position indices are divided by it (1 at 256 px, 2 at 512 px).
        norm_eps: epsilon of every layer norm.
        depth_init: shrink the residual layers' initial weights with depth, block by block.
        qkv_multipliers, ffn_multipliers: one attention and one feed-forward ratio a block (layer-wise scaling).
        use_patch_mixer, patch_mixer_depth, patch_mixer_dim, patch_mixer_qkv_ratio, patch_mixer_mlp_ratio: the light
            transformer that sees all patches before some are dropped.
        use_bias: biases in attention, SwiGLU and the layers that map to and from the mixer's width.
        num_experts, expert_capacity, experts_every_n: every n-th feed-forward layer is a mixture of `num_experts`
            experts that take expert_capacity * T / num_experts patches each; num_experts=0 makes all layers dense.
        feed_forward: "swiglu" for gated dense feed-forward layers in mixer and backbone, "gelu" for plain ones of the
            same cost. Captions go through SwiGLU in either case.
        initial_std: of most weights; the paper's 0.02 is right for widths around 1024, narrower networks learn
            sooner with more. mimetic_init: correlation of the mixer's first query and key weights, 0..1 (mimetic
            initialisation, Trockman & Kolter 2023): with the paper's 0 attention starts at random, near 1 with patches
            that are near and look alike.
        max_period: of the sine-cosine positions, in units of 2 pi patches; the paper's 10000 leaves most channels all
            but constant over a small grid.
        masks_padding: caption tokens of zeros, which padding is, are not attended to; otherwise they are tokens as
            others, as in the paper. A caption of nothing but zeros is none, as guidance needs it, in either case.
        quality_dropout: the chance that a sample's quality is not told in training; None: the network reads none, and
            has no layers for it (MIRO, Dufour et al. 2025: what a picture is worth is one more condition).
        token_path: how tokens travel under masking; Deferred with a patch-mixer and Naive without, if not given.

    Raises:
        ValueError: when multipliers and depth, or token path and patch-mixer, do not fit each other.
    """

    pos_embed: Float[Tensor, "1 t d"]
    mask_token: Float[Tensor, "1 1 v"]

    def __init__(
        self,
        input_size: Width,
        patch_size: Width,
        in_channels: Width,
        dim: Width,
        depth: Annotated[int, Limits(1, MOST_BLOCKS)],
        head_dim: Width,
        multiple_of: Width,
        caption_channels: Width,
        pos_interp_scale: Positive,
        norm_eps: Annotated[float, Limits(0, 1)],
        depth_init: bool,
        qkv_multipliers: Sequence[float],
        ffn_multipliers: Sequence[float],
        use_patch_mixer: bool,
        patch_mixer_depth: Annotated[int, Limits(0, MOST_BLOCKS)],
        patch_mixer_dim: Width,
        patch_mixer_qkv_ratio: Ratio,
        patch_mixer_mlp_ratio: Ratio,
        use_bias: bool,
        num_experts: Annotated[int, Limits(0, 4096)],
        expert_capacity: Ratio,
        experts_every_n: Width,
        feed_forward: str = "swiglu",
        initial_std: Annotated[float, Limits(0, 1000)] = 0.02,
        mimetic_init: float = 0.0,
        max_period: Positive = 10000.0,
        masks_padding: bool = False,
        quality_dropout: Share | None = None,
        token_path: TokenPath | None = None,
    ):
        super().__init__()
        for name, multipliers in (("qkv_multipliers", qkv_multipliers), ("ffn_multipliers", ffn_multipliers)):
            if len(multipliers) != depth:
                raise ValueError(f"{name} needs one ratio a block: {depth} blocks, {len(multipliers)} ratios")
        if feed_forward not in DENSE_FEED_FORWARDS:
            raise ValueError(f'feed_forward must be one of {", ".join(DENSE_FEED_FORWARDS)}, got "{feed_forward}"')
        if input_size % patch_size:
            raise ValueError(f"latents of {input_size} x {input_size} cannot be cut into patches of {patch_size}")
        if token_path is None:
            token_path = Deferred() if use_patch_mixer else Naive()
        if token_path.uses_patch_mixer != use_patch_mixer:
            wants, has = ("a", "none") if token_path.uses_patch_mixer else ("no", "one")
            raise ValueError(
                f"token path {type(token_path).__name__} wants {wants} patch-mixer but the network has {has}: "
                f"set use_patch_mixer={token_path.uses_patch_mixer}"
            )
        self.patch_size, self.in_channels, self.pos_interp_scale = patch_size, in_channels, pos_interp_scale
        self.input_size, self.caption_channels, self.masks_padding = input_size, caption_channels, masks_padding
        self.trained_grid = (input_size // patch_size, input_size // patch_size)
        patch_values = patch_size * patch_size * in_channels

        def block(width: int, attention_ratio: float, ffn_ratio: float, has_experts: bool) -> DiTBlock:
            if has_experts:
                mlp = ExpertChoice(width, ffn_ratio, multiple_of, num_experts, expert_capacity)
            else:
                mlp = DENSE_FEED_FORWARDS[feed_forward](width, ffn_ratio, multiple_of, use_bias)
            return DiTBlock(width, dim, attention_ratio, head_dim, use_bias, norm_eps, mlp)

        def has_experts(i: int) -> bool:
            return num_experts > 0 and (i + 1) % experts_every_n == 0

        # Inputs: patches, noise level, caption
        self.x_embedder = PatchEmbedding(patch_size, in_channels, dim)
        self.max_period = max_period
        self.register_buffer("pos_embed", self.position_table(self.trained_grid, dim))
        self.t_embedder = NoiseEmbedding(dim)
        self.y_embedder = CaptionEmbedding(caption_channels, dim, norm_eps)
        self.y_emb_preprocess = CaptionBlock(dim, head_dim, multiple_of, use_bias, norm_eps)
        self.pooled_y_emb_process = NormedMLP(dim, dim, norm_eps)
        self.quality_dropout = quality_dropout
        self.q_embedder = None if quality_dropout is None else QualityEmbedding(dim)

        # Patch-mixer, on all patches
        mixer_depth = patch_mixer_depth if use_patch_mixer else 0
        self.patch_mixer = nn.ModuleList(
            block(patch_mixer_dim, patch_mixer_qkv_ratio, patch_mixer_mlp_ratio, has_experts(i) and i >= 1)
            for i in range(mixer_depth)
        )

        def to_width(from_dim: int, to_dim: int) -> nn.Module:
            return change_width(from_dim, to_dim, use_bias, norm_eps)

        mixer_dim = patch_mixer_dim if use_patch_mixer else dim
        self.patch_mixer_map_xin = to_width(dim, mixer_dim)
        self.patch_mixer_map_xout = to_width(mixer_dim, dim)
        self.patch_mixer_map_y = to_width(dim, mixer_dim)

        # Backbone, on the patches that are kept; the last block is always dense
        self.blocks = nn.ModuleList(
            block(dim, qkv_multipliers[i], ffn_multipliers[i], has_experts(i) and i < depth - 1) for i in range(depth)
        )
        self.final_layer = FinalLayer(dim, patch_values, norm_eps)
        self.register_buffer("mask_token", torch.zeros(1, 1, patch_values))

        def light_block(width: int) -> DiTBlock:
            return block(width, patch_mixer_qkv_ratio, patch_mixer_mlp_ratio, has_experts=False)

        self.token_path = token_path
        self.token_path.make_layers(
            NetworkParts(dim, depth, head_dim, self.trained_grid, self.position_table, light_block, to_width)
        )
        self.initialise(depth_init, initial_std, mimetic_init)

    def initialise(self, depth_init: bool, std: float, mimetic_init: float) -> None:
        """Fills every parameter in place. The output is exactly zero afterwards.

        `std` is that of the weights of blocks, captions and noise levels. With `depth_init` the layers that write into
        the residual stream shrink with their depth, block by block; otherwise all of them by the backbone's depth.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.flatten(1))
        for mlp in (self.t_embedder.mlp, self.y_embedder.y_proj, self.pooled_y_emb_process):
            for layer in mlp.children():
                if isinstance(layer, nn.Linear):
                    nn.init.normal_(layer.weight, std=std)

        depth = len(self.blocks)
        backbone = [cast(DiTBlock, block) for block in self.blocks]
        # Patch-mixer, and the blocks that a token path has of its own.
        light = [module for module in self.modules() if isinstance(module, DiTBlock) and module not in backbone]
        for i, block in enumerate(backbone):
            initialise_block(block, std=std, residual_std=std / math.sqrt(2 * (i + 1 if depth_init else depth)))
        for block in light:
            initialise_block(block, std=std, residual_std=std / math.sqrt(2 * depth))
        if mimetic_init:
            for block in self.patch_mixer:
                liken_keys_to_queries(cast(DiTBlock, block).attn.qkv.weight, mimetic_init)
        initialise_attention_and_mlp(self.y_emb_preprocess, std, residual_std=std)

        # Every block starts as the identity and the output as zero: the first steps learn scales before directions.
        for modulated in (*backbone, *light, self.final_layer):
            nn.init.zeros_(cast(nn.Linear, modulated.adaLN_modulation[1]).weight)
        nn.init.zeros_(self.y_emb_preprocess.attn.proj.weight)
        nn.init.zeros_(self.y_emb_preprocess.mlp.w3.weight)
        nn.init.zeros_(self.final_layer.linear.weight)
        if self.q_embedder is not None:
            nn.init.normal_(cast(nn.Linear, self.q_embedder.mlp[0]).weight, std=std)
            nn.init.zeros_(cast(nn.Linear, self.q_embedder.mlp[2]).weight)

    def forward(
        self,
        latents: Float[Tensor, "n c h w"],
        noise_label: Float[Tensor, " n"],
        captions: Float[Tensor, "n *one l dc"] | CaptionMemory,
        kept: KeptPatches | None = None,
        quality: Float[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c h w"]:
        """The raw network output F; patches that are not predicted hold the mask token (zeros).

        `captions` may carry the extra axis of length one that the released code has, or be what `read_captions` made
        of them. `quality`: from 0 to 1, NaN or None where it is not told. Raises ValueError when the latents' sides are
        not divisible by the patch size, SettingsError for a quality where the network reads none.
        """
        conditioning = self.embed_conditioning(noise_label, captions)
        if quality is not None:
            vector = conditioning.vector + self.embed_quality(quality)
            conditioning = conditioning._replace(vector=vector)
        grid = self.grid(latents)
        tokens, predicted = self.token_path(self, self.embed_patches(latents), conditioning, kept, grid)
        values = self.final_layer(tokens, conditioning.vector)
        if predicted is not None:
            values = predicted.place(values, self.mask_token)
        return assemble_patches(values, *grid, self.patch_size)

    def grid(self, latents: Float[Tensor, "n c h w"]) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width = latents.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"latents of {height} x {width} cannot be cut into patches of {self.patch_size}")
        return height // self.patch_size, width // self.patch_size

    def embed_patches(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n t d"]:
        """A token for each patch, with its position added."""
        return self.x_embedder(latents) + self.positions_of(self.grid(latents), self.pos_embed)

    def position_table(self, grid: tuple[int, int], width: int) -> Float[Tensor, "1 t w"]:
        """What tells the patches of a grid of (rows, columns) apart, in tokens of that width."""
        return sincos_position_table(*grid, width, self.pos_interp_scale, self.max_period)

    def positions_of(self, grid: tuple[int, int], trained: Float[Tensor, "1 s d"]) -> Float[Tensor, "1 t d"]:
        """The positions of a grid of (rows, columns) patches: those of training if it is that grid, or made for it."""
        return trained if grid == self.trained_grid else self.position_table(grid, trained.shape[-1]).to(trained)

    def embed_captions(
        self, captions: Float[Tensor, "n *one l dc"]
    ) -> tuple[Float[Tensor, "n l d"], Float[Tensor, "n d"], Bool[Tensor, "n l"] | None]:
        """The caption tokens after their own transformer block, their mean on its way into the conditioning, and which
        of them are attended to, None for all."""
        captions = captions.flatten(1, -2)
        present = caption_tokens_present(captions) if self.masks_padding else None
        tokens = self.y_emb_preprocess(self.y_embedder(captions.to(product_type(self.mask_token))), present)
        if present is None:
            mean = tokens.mean(dim=1)
        else:
            mean = (tokens * present[..., None]).sum(dim=1) / present.sum(dim=1, keepdim=True)
        pooled = self.pooled_y_emb_process
        return tokens, in_full_precision(pooled, mean, pooled.fc1.weight.dtype), present

    def embed_conditioning(
        self, noise_label: Float[Tensor, " n"], captions: Float[Tensor, "n *one l dc"] | CaptionMemory
    ) -> Conditioning:
        """Noise level plus mean caption as one vector, and the captions for each block."""
        noise = self.t_embedder(noise_label)
        if isinstance(captions, CaptionMemory):
            which = torch.arange(len(noise), device=noise.device).clamp(max=len(captions.pooled) - 1)
            vector, tokens = noise + captions.pooled[which], captions.tokens[which]
            present = None if captions.present is None else captions.present[which]
            return Conditioning(vector, tokens, captions.in_mixer, captions.in_backbone, present)
        tokens, pooled, present = self.embed_captions(captions)
        in_mixer = [self.patch_mixer_map_y(tokens)] * len(self.patch_mixer)
        return Conditioning(noise + pooled, tokens, in_mixer, [tokens] * len(self.blocks), present)

    def embed_quality(self, quality: Float[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """What is added to the vector that conditions every patch. SettingsError where the network reads none."""
        if self.q_embedder is None:
            raise SettingsError(
                "this network was trained without the quality of pictures (model.quality_dropout is null), and cannot "
                "be asked for one: leave sampling.quality at null"
            )
        return self.q_embedder(quality)

    def read_captions(self, captions: Float[Tensor, "m *one l dc"], quality: float | None = None) -> CaptionMemory:
        """What `forward` takes in place of captions, read once for the many evaluations of a sampler.

        Samples beyond the number of captions are then without one, as guidance needs them: the same as zeros for a
        caption, but without a query (`CrossAttention.read`). `quality` is that which pictures are to have, of samples
        without a caption it is not told. SettingsError where the network reads none.
        """
        tokens, pooled, present = self.embed_captions(torch.cat([captions, torch.zeros_like(captions[:1])]))
        if quality is not None:
            told = torch.tensor([quality] * len(captions) + [math.nan], device=pooled.device)
            pooled = pooled + self.embed_quality(told)

        def read(blocks: nn.ModuleList, tokens: Tensor) -> list[ReadCaptions]:
            return [cast(DiTBlock, block).cross_attn.read(tokens, present) for block in blocks]

        in_mixer = read(self.patch_mixer, self.patch_mixer_map_y(tokens))
        return CaptionMemory(tokens, pooled, in_mixer, read(self.blocks, tokens), present)

    def mix_patches(self, tokens: Float[Tensor, "n t d"], conditioning: Conditioning) -> Float[Tensor, "n t dm"]:
        """The patch-mixer, at its own width, over all patches."""
        tokens = self.patch_mixer_map_xin(tokens)
        for block, captions in zip(self.patch_mixer, conditioning.in_mixer, strict=True):
            tokens = block(tokens, captions, conditioning.vector, conditioning.present)
        return tokens

    def leave_mixer(self, tokens: Float[Tensor, "n k dm"]) -> Float[Tensor, "n k d"]:
        """Back to the backbone's width; called after patches are dropped, to save compute."""
        return self.patch_mixer_map_xout(tokens)

    def backbone(
        self, tokens: Float[Tensor, "n k d"], conditioning: Conditioning, first: int = 0, end: int | None = None
    ) -> Float[Tensor, "n k d"]:
        """The expensive part, over whatever tokens it is given: all its blocks, or those from `first` up to `end`."""
        for i, captions in list(enumerate(conditioning.in_backbone))[first:end]:
            tokens = self.blocks[i](tokens, captions, conditioning.vector, conditioning.present)
        return tokens

    def checkpoint_activations(self) -> None:
        """Keeps only what goes into each block for the backward pass, and computes the block again there.

        Memory grows with one block instead of all of them; a step takes about a forward pass longer.
        """
        for module in self.modules():
            if isinstance(module, DiTBlock):
                module.keeps_activations = False
