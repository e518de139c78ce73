"""The page of the API's documentation, whose policy lets nothing run but its own script."""

from playwright.sync_api import expect

from tests.api_server import api_server


def test_the_documentation_works_under_its_strict_policy(new_page, tmp_path):
    with api_server(tmp_path) as server:
        page = new_page()
        page.goto(f"{server.url}/docs")
        operation = page.locator("#operations-builds-get_v1_projects_project_builds")
        operation.locator("button").first.click()
        expect(operation).to_contain_text("Needs scope read.")
        operation.get_by_role("button", name="Try it out").click()
        expect(operation.get_by_role("button", name="Execute")).to_be_visible()
        page.close()
