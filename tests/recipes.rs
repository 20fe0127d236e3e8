//! The recipes of this repository, and the reports of broken ones.

use equipoise::recipe::Recipe;
use std::path::{Path, PathBuf};

fn recipes() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    paths.sort();
    paths
}

#[test]
fn each_recipe_loads_and_survives_being_written_out() {
    assert!(recipes().len() >= 2);
    for path in recipes() {
        let recipe = Recipe::load(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
        let again = Recipe::parse(&recipe.to_yaml().unwrap(), &path, &[]).unwrap();
        assert_eq!(again, recipe);
        assert_eq!(recipe.output_dir, Path::new("adapters").join(path.file_stem().unwrap()));
    }
}

#[test]
fn each_recipe_begins_with_the_command_that_runs_it() {
    for path in recipes() {
        let text = std::fs::read_to_string(&path).unwrap();
        let command = format!("# equipoise train recipes/{}", path.file_name().unwrap().to_string_lossy());
        assert_eq!(text.lines().next(), Some(command.as_str()));
    }
}

#[test]
fn the_objective_of_a_recipe_can_be_swapped_from_the_command_line() {
    for path in recipes() {
        for objective in ["sft", "dft", "bft"] {
            Recipe::load(&path, &[format!("objective.type={objective}")]).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}
