"""Language modelling with Titans, on bytes."""

from titans_seq.domain import Domain

DOMAIN = Domain(
    commands={"text": "domains.text.cli:app", "serve": "domains.text.cli.serve:serve"},
    models={
        "titans_text": "domains.text.model:TitansForCausalLM",
        "titans_autoencoder": "domains.text.tasks.autoencoder:TitansAutoencoder",
    },
)
