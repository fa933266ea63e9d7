"""The site: every page in both languages, links that lead somewhere, nothing fetched from another host, search."""

import json
import os
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import website  # noqa: E402

ZENSICAL = Path(sys.executable).with_name("zensical")
needs_generator = pytest.mark.skipif(not ZENSICAL.is_file(), reason="no generator in .venv: make site installs it")
# What a browser fetches by itself: tag -> attribute.
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "audio": "src", "embed": "src",
         "object": "data", "use": "href"}  # fmt: skip


class Page(HTMLParser):
    """links: what a reader can click or a browser fetches; loads: what a browser fetches; ids: where links can lead."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self.links += [given[name] for name in ("href", "src") if given.get(name)]
        if tag == "link" and given.get("rel") not in ("canonical", "alternate", "prev", "next"):
            self.loads.append(given.get("href", ""))
        self.loads += [given[LOADS[tag]]] if given.get(LOADS.get(tag)) else []
        self.loads += re.findall(r"url\(['\"]?([^'\")]+)", given.get("style") or "")


def foreign(text, suffix):
    """Addresses on another host that a browser would fetch for an HTML, CSS or SVG file."""
    loads = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)
    found = [each for pair in loads for each in pair if each]
    if suffix == ".html":
        found += Page(text).loads
    if suffix == ".svg":
        found += re.findall(r"<(?:image|use|script)[^>]*href=\"([^\"]+)\"", text)
    return [each for each in found if re.match(r"(https?:)?//", each)]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    out = tmp_path_factory.mktemp("site") / "site"
    try:
        return out, website.build(out)
    except SystemExit as end:
        pytest.fail(str(end))


@needs_generator
def test_every_page_is_there_in_both_languages_and_leads_to_its_twin(built):
    out, site = built
    assert len(site.pages) > 50
    for lang, where in website.LANGUAGES.items():
        (other,) = set(website.LANGUAGES) - {lang}
        for path in site.shown(lang):
            file = out / where / path.with_suffix(".html")
            switch = re.search(r'class="[^"]*site-twin" href="([^"]+)">([^<]+)<', file.read_text("utf-8"))
            assert switch[2] == website.OTHER[lang]
            twin = (file.parent / switch[1]).resolve()
            assert twin == (out / website.LANGUAGES[other] / path.with_suffix(".html")).resolve() and twin.is_file()
    for page in (
        "alpaca/index.html",
        "course/plans.html",
        "docker/index.html",
        "deploy/SERVING.html",
        "bench/RESULTS.html",
    ):
        texts = [
            re.search(r"<h1.*?</article>", (out / where / page).read_text("utf-8"), re.DOTALL)[0]
            for where in ("", "zh")
        ]
        chinese = [len(re.findall(r"[\u4e00-\u9fff]", text)) for text in texts]
        assert chinese[1] > 300 > 10 * chinese[0] / 2, page  # a word of Chinese may stand in an English page


@needs_generator
def test_links_lead_somewhere(built):
    out, _ = built
    pages = {file: Page(file.read_text("utf-8")) for file in out.rglob("*.html")}
    wrong, seen = [], 0
    for file, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:|//", link) or file.name == "404.html":
                continue
            parts = urlsplit(link)
            to = (file.parent / unquote(parts.path)).resolve() if parts.path else file
            to = to / "index.html" if to.is_dir() else to
            seen += 1
            anchor = unquote(parts.fragment)
            if not to.is_file() or (anchor and to.suffix == ".html" and anchor not in pages[to].ids | {"__codelineno"}):
                wrong.append(f"{file.relative_to(out)}: {link}")
    assert seen > 3000 and not wrong, "\n".join(wrong)


@needs_generator
def test_nothing_is_fetched_from_another_host(built):
    out, _ = built
    files = [file for file in out.rglob("*") if file.suffix in (".html", ".css", ".svg")]
    assert len(files) > 100
    assert not [(file.name, found) for file in files if (found := foreign(file.read_text("utf-8"), file.suffix))]
    scripts = [file for file in out.rglob("*.js") if file.name != "search.js"]  # that one holds the pages' text
    urls = {url for file in scripts for url in re.findall(r"https?://[^\"'`\s]+", file.read_text("utf-8"))}
    assert len(scripts) > 3 and urls and not [url for url in urls if not url.startswith("http://www.w3.org/")]


def test_what_is_fetched_from_another_host_is_found():
    for text in (
        '<link rel="stylesheet" href="https://a.b/c.css">',
        '<link rel="preconnect" href="//a.b">',
        '<script src="//a.b/c.js"></script>',
        '<p><img alt="" src="http://a.b/c.png"></p>',
        "<style>p { background: url('https://a.b/c.png') }</style>",
        '<p style="background: url(https://a.b/c.png)">',
    ):
        assert foreign(text, ".html"), text
    assert foreign('@import "https://a.b/c.css";', ".css") and foreign('<image href="https://a.b/c.png"/>', ".svg")
    assert not foreign('<a href="https://a.b">a</a><img src="c.png"><link rel="canonical" href="https://a.b">', ".html")


@needs_generator
def test_search_knows_both_languages(built):
    out, _ = built
    for where, word in (("", "gradient accumulation"), ("zh", "梯度累积")):
        file = out / where / "search.json"
        assert word in json.dumps(json.loads(file.read_text("utf-8")), ensure_ascii=False).lower()


def repository(folder, **files):
    for name, text in files.items():
        file = folder / name.replace("__", "/").replace("_md", ".md").replace("_py", ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    return folder


def test_an_address_that_is_none_on_github_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(
        sys, "argv", ["website.py", "--out", str(tmp_path / "site"), "--repo", "https://github.com/a/b"]
    )
    with pytest.raises(SystemExit, match="expected OWNER/NAME"):
        website.main()
    assert not (tmp_path / "site").exists()


def test_a_link_to_nothing_stops_the_build(tmp_path):
    root = repository(
        tmp_path, README_md="# A\n\n[b](b/) `[no](link.md)`\n```\n[no](link)\n```\n", b__README_md="# B\n\n[c](c.md)\n"
    )
    with pytest.raises(SystemExit, match=r"links that lead nowhere:\nb/README.md: c.md$"):
        website.build(tmp_path / "site", root)


@needs_generator
def test_an_anchor_that_is_not_there_stops_the_build(tmp_path):
    root = repository(tmp_path, README_md="# A\n\n[b](b/README.md#nothing)\n", b__README_md="# B\n\n## Something\n")
    with pytest.raises(SystemExit, match="anchor does not exist"):
        website.build(tmp_path / "site", root)


def test_links_lead_to_the_pages_of_the_same_language(tmp_path):
    repository(tmp_path, README_md="# A\n", b__README_md="# B\n", b__train_py="x = 1\n")
    text = "[English](README.md) · [rest](#rest)\n[`b`](b/) [b](b/README.zh-CN.md) [code](b/train.py#L1) [en](b/README.md#b)\n"
    (tmp_path / "README.zh-CN.md").write_text(text, "utf-8")
    (tmp_path / "b" / "README.zh-CN.md").write_text("# B\n\n[up](../README.zh-CN.md)\n", "utf-8")
    page, links = (
        Path("README.zh-CN.md"),
        "[rest](#rest)\n[`b`](b/index.md) [b](b/index.md) {} [en](../b/index.html#b)\n",
    )
    assert website.Site(tmp_path).text(page, "zh") == links.format("code")
    assert website.Site(tmp_path, "https://h/r").text(page, "zh") == links.format("[code](https://h/r/b/train.py)")
    assert website.Site(tmp_path).text(Path("b/README.zh-CN.md"), "zh").endswith("[up](../index.md)\n")


@pytest.mark.parametrize(
    "github, generator",
    [
        ("1. a\n\n   ```sh\n   ls\n   ```\n\n   b\n2. c", "1. a\n\n    ```sh\n    ls\n    ```\n\n    b\n\n2. c"),
        ("- a\n  b\n- c\n  - d", "- a\n  b\n- c\n    - d"),
        ("text\n- a\n- b", "text\n\n- a\n- b"),
        ("中文\n中文，\n“中” a\nb\n## 中\n中", "中文中文，“中” a\nb\n## 中\n中"),
        ("| 中 |\n|---|\n| 中", "| 中 |\n|---|\n| 中"),
    ],
)
def test_text_as_the_generator_wants_it(tmp_path, github, generator):
    repository(tmp_path, README_md=github)
    assert website.Site(tmp_path).text(Path("README.md"), "en") == generator + "\n"


@needs_generator
@pytest.mark.slow
def test_in_a_browser_from_the_disk(built):
    """No request leaves, no page is wider than the screen, and the search finds Chinese words."""
    browser = next((each for each in ("/usr/bin/chromium", "/usr/bin/google-chrome") if Path(each).exists()), None)
    if not browser:
        pytest.skip("no Chromium here")
    from playwright.sync_api import sync_playwright

    out, site = built
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        asked, wide = [], []
        for width in (1280, 390):
            tab = chromium.new_page(viewport={"width": width, "height": 844})
            tab.on("request", lambda each: asked.append(each.url))
            for lang, where in website.LANGUAGES.items():
                for path in sorted(site.shown(lang))[:: 1 if os.environ.get("TEST_NIGHTLY") else 9]:
                    tab.goto((out / where / path.with_suffix(".html")).as_uri(), wait_until="domcontentloaded")
                    if tab.evaluate("document.documentElement.scrollWidth") > width:
                        wide.append((width, str(path)))
        for where, words, expected in (("", "budget forcing", "s1_scaling"), ("zh", "灾难性遗忘", "domain_mix")):
            tab = chromium.new_page(viewport={"width": 1280, "height": 844})
            tab.on("request", lambda each: asked.append(each.url))
            tab.goto((out / where / "index.html").as_uri())
            tab.keyboard.press("/")
            tab.keyboard.type(words, delay=20)
            tab.locator(f"text=/{expected}/").locator("visible=true").last.wait_for(timeout=10000)
            tab.locator("text=/[1-9]\\d* results?/").first.wait_for(timeout=10000)
        chromium.close()
    assert not wide
    assert len(asked) > 50 and not [url for url in asked if not url.startswith(("file:", "data:", "blob:", "about:"))]
