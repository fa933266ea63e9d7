"""The pages of this repository as a static site, in both languages, with search:  make site

    python tools/website.py            # writes site/: open site/index.html, no server needed
    python tools/website.py --out DIR

Pages are the READMEs, the RESULTS and the course as they stand; nothing is written twice. GitHub's ways are translated:
README.md becomes index.html, README.zh-CN.md becomes zh/index.html, a link to a folder leads to its README. A link to a
source file leads to the repository on GitHub (--repo), and stays plain text without one. A link to nothing stops the build.
The generator is Zensical (tools/requirements-site.txt); no page asks another host for anything.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import unquote

from notebooks import check_repo, origin

ROOT = Path(__file__).resolve().parents[1]
THEME = ROOT / "tools" / "site_theme"
PICTURES = {".svg", ".png", ".gif", ".jpg"}
LANGUAGES = {"en": Path(), "zh": Path("zh")}  # language -> where its pages stand in the site
SITE = {"en": "Fine-tuning recipes for Qwen2.5", "zh": "Qwen2.5 微调教程"}
OTHER = {"en": "中文", "zh": "English"}
COURSE = ["README", "plans", "every-run", "exercises", "faults", "notebooks"]
COURSE += ["measured", "faq", "glossary", "costs", "history", "migration"]
LESSONS = ["math_demos", "alpaca", "medical", "domain_mix", "lora_variants", "continual", "rlhf_ppo", "preference"]
LESSONS += ["r1_grpo", "s1_scaling", "vl_insurance", "deploy"]  # the order of course/README.md
WORDS = {"en": {"course": "The course", "lessons": "Lessons", "tools": "Machines", "RESULTS": "Results", "SERVING": "Serving",
                "sample": "The sample data", "exercises": "Exercises"},
         "zh": {"course": "课程", "lessons": "各课", "tools": "机器", "RESULTS": "实测结果", "SERVING": "部署服务",
                "sample": "样例数据", "exercises": "练习"}}  # fmt: skip
NO_PAGES = {"models", "data", "outputs", "site", "common"}
LINK = re.compile(r"(?P<code>(`+)(?!`).+?(?<!`)\2(?!`))|(?P<mark>!?)\[(?P<text>(?:`[^`]*`|!\[[^\]]*\]\([^)]*\)|[^\[\]`])*)\]\((?P<to>[^)\s]+)\)",
                  re.DOTALL)  # fmt: skip


ITEM = r"([-*]|\d+\.) "
CHINESE = r"[\u2e80-\u9fff\uf900-\ufaff\uff00-\uff65“”‘’…]"


def joined(lines):
    """Lines of a page as one text. A browser makes a space of a line's end: between Chinese characters there is none."""
    text = ""
    for line in lines:
        inside = re.search(CHINESE + "$", text) and re.match(rf" *{CHINESE}", line)
        ends = text.rpartition("\n")[2].lstrip().startswith(("#", "|"))
        text += line.lstrip() if inside and not ends else f"\n{line}"
    return text[1:]


def language(page):
    return "zh" if page.name.endswith(".zh-CN.md") else "en"


def find_pages(root):
    """Every page of the site, as paths below `root`."""
    found = [*root.glob("*.md"), *root.glob("*/*.md"), *root.glob("*/sample/README*.md"), *root.glob("course/*/*.md")]
    inside = (file.relative_to(root) for file in found)
    return sorted(page for page in inside if page.parts[0] not in NO_PAGES and not page.parts[0].startswith("."))


def place(page):
    """Where a page stands among those of its language: alpaca/README.zh-CN.md -> alpaca/index.md."""
    name = page.name.removesuffix(".md").removesuffix(".zh-CN")
    return page.with_name("index.md" if name == "README" else f"{name}.md")


def twin(page):
    """The same page in the other language, whether there is one or not."""
    name = page.name.removesuffix(".md").removesuffix(".zh-CN")
    return page.with_name(f"{name}.md" if language(page) == "zh" else f"{name}.zh-CN.md")


class Site:
    def __init__(self, root=ROOT, repository=""):
        self.root, self.repository, self.pages = root, repository, set(find_pages(root))
        self.missing, self.pictures = [], set()  # links that lead nowhere; pictures to be copied

    def shown(self, lang):
        """{place: page} of a language; a page without a twin, as the glossary of both languages, stands in both."""
        made = {place(page): page for page in self.pages if twin(page) not in self.pages}
        return made | {place(page): page for page in self.pages if language(page) == lang}

    def target(self, to, page, lang):
        """A link of `page` as it has to be among the pages of `lang`; "" where only its text can stay."""
        if re.match(r"[a-z]+:|#", to):
            return to
        name, _, anchor = to.partition("#")
        path = Path(os.path.normpath(page.parent / unquote(name)))
        anchor = f"#{anchor}" if anchor else ""
        if (self.root / path).is_dir():
            readme = path / ("README.zh-CN.md" if lang == "zh" else "README.md")
            path = readme if (self.root / readme).is_file() else path / "README.md"
            if path not in self.pages:
                path = path.parent
        here = place(page).parent
        if path in self.pages:
            if path in self.shown(lang).values():
                return os.path.relpath(place(path), here) + anchor
            there = LANGUAGES[language(path)] / place(path).with_suffix(".html")  # the other language's page
            return os.path.relpath(there, LANGUAGES[lang] / here) + anchor
        if not (self.root / path).exists():
            self.missing.append(f"{page}: {to}")
            return ""
        if path.suffix in PICTURES:
            self.pictures.add(path)
            return os.path.relpath(path, here)
        return f"{self.repository}/{path.as_posix()}" if self.repository else ""

    def text(self, page, lang):
        """A page's Markdown for the generator."""

        def link(match):
            if match["code"]:
                return match[0]
            to, inside = self.target(match["to"], page, lang), LINK.sub(link, match["text"])
            return f"{match['mark']}[{inside}]({to})" if to else inside

        made, fence, shift, listed = [], "", 0, False
        prose = []  # lines between two blocks of code: a link may go over a line's end

        def flush():
            made.append(LINK.sub(link, joined(prose)))
            prose.clear()

        # "[中文](README.zh-CN.md) · ...": the site's own switch stands above every page.
        switch = re.compile(r"^\[(中文|English)\]\([^)]*\)( · )?", re.MULTILINE)
        for line in switch.sub("", (self.root / page).read_text("utf-8"), count=1).splitlines():
            mark = re.match(r"( *)(`{3,}|~{3,})", line)
            if fence:
                made.append(" " * shift + line)
                fence = "" if mark and line.strip() == mark[2] and mark[2].startswith(fence) else fence
            elif mark:
                flush()
                fence, shift = mark[2], -len(mark[1]) % 4  # inside a list the generator wants four spaces, GitHub two
                made.append(" " * shift + line)
            else:
                after_blank = prose[-1:] in ([], [""])
                if re.match(ITEM, line) and not after_blank and (prose[-1].startswith("    ") or not listed):
                    prose.append("")  # GitHub ends a paragraph where a list begins
                listed = bool(re.match(ITEM, line) or (listed and not (after_blank and re.match(r"\S", line))))
                deeper = after_blank or re.match(r" {2,3}" + ITEM, line)
                prose.append(re.sub(r"^ {2,3}(?=\S)", " " * 4, line) if deeper else line)
        flush()
        return "\n".join(made) + "\n"

    def nav(self, lang):
        """The menu: every page of a language, those of the lists above first and in their order."""
        rest, words = self.shown(lang), WORDS[lang]

        def title(page):
            heading = re.search(r"^# (.+)$", (self.root / page).read_text("utf-8"), re.MULTILINE)
            return re.split(r"[:：]", heading[1].replace("`", ""))[0]

        def section(inside):
            """Pages as a part of the menu; the first is the part's own."""
            inside = [(path, rest.pop(path)) for path in inside]
            names = [
                words.get(path.stem) or (words["sample"] if "sample" in path.parts else title(page))
                for path, page in inside
            ]
            return [path.as_posix() if not at else {names[at]: path.as_posix()} for at, (path, _) in enumerate(inside)]

        def below(name, first):
            found = sorted(path for path in rest if path.parts[0] == name)
            return sorted(found, key=lambda path: first.index(path.stem) if path.stem in first else len(first))

        def folders(names):
            return [{name: section(below(name, ["index", "RESULTS", "SERVING"]))} for name in names]

        def named(path):
            """course/index.md is README of the list above, course/exercises/index.md is exercises."""
            name = path.stem if path.stem != "index" else "README" if path.parent.name == "course" else path.parent.name
            return (COURSE.index(name) if name in COURSE else len(COURSE), path)

        menu = [{title(rest[Path("index.md")]): section([Path("index.md")])[0]}]
        menu.append({words["course"]: section(sorted(below("course", []), key=named))})
        menu.append({words["lessons"]: folders([name for name in LESSONS if below(name, [])])})
        menu.append({words["tools"]: folders(sorted({path.parts[0] for path in rest}))})
        return menu

    def stage(self, folder, lang):
        """Writes what the generator reads: docs/, zensical's configuration, the theme."""
        self.pictures.clear()
        (other,) = set(LANGUAGES) - {lang}
        for path, page in self.shown(lang).items():
            file = folder / "docs" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            back = os.path.relpath(LANGUAGES[other] / path.with_suffix(".html"), (LANGUAGES[lang] / path).parent)
            file.write_text(f"---\ntwin: {back}\n---\n" + self.text(page, lang), "utf-8")
        for picture in self.pictures:
            (folder / "docs" / picture).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / picture, folder / "docs" / picture)
        shutil.copytree(THEME, folder / "theme")
        for name in ("site.css", "iframe-worker.js"):
            shutil.copyfile(THEME / name, folder / "docs" / name)
        (folder / "mkdocs.yml").write_text(
            json.dumps(settings(lang, self.nav(lang)), ensure_ascii=False, indent=1), "utf-8"
        )


def settings(lang, menu):
    """The generator's configuration: JSON, which is YAML, too."""
    slugs = {"object": "pymdownx.slugs.slugify", "kwds": {"case": "lower"}}  # a heading's name in a link, as GitHub's
    light = {
        "media": "(prefers-color-scheme: light)",
        "scheme": "default",
        "toggle": {"icon": "lucide/sun", "name": "dark"},
    }
    dark = {
        "media": "(prefers-color-scheme: dark)",
        "scheme": "slate",
        "toggle": {"icon": "lucide/moon", "name": "light"},
    }
    features = (
        "navigation.indexes navigation.sections navigation.footer navigation.top content.code.copy search.highlight"
    )
    extensions = ["tables", "attr_list", "pymdownx.betterem", "pymdownx.highlight", "pymdownx.superfences"]
    return {
        "site_name": SITE[lang],
        "nav": menu,
        "use_directory_urls": False,  # pages open from a disk, without a server
        "plugins": ["search", "offline"],
        "extra_css": ["site.css"],
        "extra": {
            "generator": False,
            "alternate": [{"name": OTHER[lang], "link": "index.html", "lang": lang}],
            "polyfills": ["iframe-worker.js"],  # else the plugin "offline" fetches it from another host
        },
        "theme": {
            "name": "material",
            "language": lang,
            "custom_dir": "theme",
            "font": False,  # the reader's own: others would be fetched from another host
            "features": features.split(),
            "palette": [light, dark],
        },
        "markdown_extensions": [*extensions, {"toc": {"slugify": slugs, "permalink": True}}],
    }


def build(out, root=ROOT, generator=None, repository=""):
    """Writes the site to `out`, which is made anew. generator: the `zensical` command. repository: where the source is read, up
    to a file's path."""
    generator = generator or Path(sys.executable).with_name("zensical")
    site = Site(root, repository)
    with tempfile.TemporaryDirectory() as temporary:
        for lang in LANGUAGES:
            folder = Path(temporary) / lang
            folder.mkdir()
            site.stage(folder, lang)
            if site.missing:
                raise SystemExit("\n".join(["links that lead nowhere:", *sorted(set(site.missing))]))
            command = [generator, "build", "--strict"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            if done.returncode:
                said = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
                raise SystemExit(f"{lang}: {said.partition('Traceback')[0]}")
        shutil.rmtree(out, ignore_errors=True)
        for lang, where in LANGUAGES.items():
            shutil.copytree(Path(temporary) / lang / "site", out / where, dirs_exist_ok=True)
    for script in out.rglob(
        "assets/**/*.js"
    ):  # what the theme would fetch for diagrams and live code, which no page has
        script.write_text(re.sub(r"https?://(?!www\.w3\.org/)[^\"'`]*", "", script.read_text("utf-8")), "utf-8")
    return site


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="made anew (default: site/)")
    parser.add_argument("--repo", default=origin(), metavar="OWNER/NAME", help="on GitHub, for links to source files")
    args = parser.parse_args()
    check_repo(args.repo)
    site = build(args.out, repository=f"https://github.com/{args.repo}/blob/main" if args.repo else "")
    print(f"{len(site.pages)} pages in {args.out}: open {args.out / 'index.html'}")


if __name__ == "__main__":
    main()
