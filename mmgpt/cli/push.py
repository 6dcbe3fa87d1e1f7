"""mmgpt push: share a model on the Hugging Face Hub."""

from mmgpt.cli import options


def main(arguments: list[str]) -> None:
    parser = options.parser(
        "push",
        "Upload a model and its model card to the Hugging Face Hub, with the token of `hf auth login` or HF_TOKEN. The "
        "card is README.md in the model's directory, or else is made of what its run told.",
    )
    parser.add_argument("model", metavar="DIR", help="a trained model, or a run that holds one")
    parser.add_argument("repo_id", metavar="OWNER/NAME", help="on the Hub; made where it is not there")
    parser.add_argument("--licence", metavar="NAME", help="of the model, by its short name on the Hub: apache-2.0, ...")
    parser.add_argument("--data-licence", metavar="TEXT", help="of the data it was trained on, in words")
    parser.add_argument(
        "--dataset", action="append", default=[], metavar="ID", help="of the Hub, or a name; may be given several times"
    )
    parser.add_argument(
        "--private", action="store_true", default=None, help="make the repository private; refused if it is public"
    )
    parser.add_argument("--tag", metavar="NAME", help="a new name for this version: OWNER/NAME@v1 loads it")
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")
    args = parser.parse_args(arguments)

    from mmgpt.sharing import push

    commit = push(
        args.model,
        args.repo_id,
        licence=args.licence,
        data_licence=args.data_licence,
        datasets=args.dataset,
        private=args.private,
        tag=args.tag,
    )
    if args.json:
        options.show({"model": args.repo_id, "revision": commit.oid, "url": commit.commit_url})
    else:
        print(f"{args.repo_id}@{commit.oid}\n{commit.commit_url}")
