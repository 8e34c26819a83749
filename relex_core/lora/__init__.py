"""LoRA trajectories: every step is an adapter, and the product of its factors is never formed while fitting.

    Δ_t = s_t B_t A_t                                   s_t: scaling; B_t "m r", A_t "r n"
    ⟨Δ_t, Δ_u⟩ = s_t s_u Σ (B_tᵀB_u ∘ A_tA_uᵀ)          gram.py
    D = Σ_t C_t Δ_t = [C_t s_t B_t] [A_t]               factors.py: side by side, then to the numerical rank

`window.py` reads the factors of a window, `merged.py` shows base and adapter as one checkpoint; the fit itself is
`fit/adapters.py`. `sources.py` mixes candidates, `output.py` writes them as adapters. numpy only.
"""
