"""Networks: plain ``nn.Module`` classes that know nothing of losses, data or how they are run."""
