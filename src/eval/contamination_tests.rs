use super::*;

/// `count` words that no other number has, from `begin` on.
fn text(begin: usize, count: usize) -> String {
    (begin..begin + count).map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ")
}

/// What is found of items of one task in rows.
fn found(items: &[String], rows: &[String]) -> Vec<Found> {
    let items: Vec<(usize, String)> = items.iter().map(|item| (0, item.clone())).collect();
    let items = Items::new(&items, rows);
    let index = Index::new(&items);
    let mut tally = Tally::new(&index);
    for (row, text) in rows.iter().enumerate() {
        tally.add(row, &index.search(text));
    }
    tally.finish()
}

#[test]
fn words_are_lower_case_and_without_punctuation() {
    assert_eq!(words("What's the  T-cell's\nrole — if any?"), ["whats", "the", "tcells", "role", "if", "any"]);
    assert_eq!(words("GO:0006914, Åβ-Amyloid"), ["go0006914", "åβamyloid"]);
    assert_eq!(words(" ... \n"), Vec::<String>::new());
}

#[test]
fn a_copy_is_found_whatever_its_case_and_punctuation() {
    let item = text(0, 40);
    let copy = item.to_uppercase().replace(' ', ", ") + "!";
    for row in [item.clone(), copy] {
        let of_item = found(&[item.clone(), text(100, 40)], &[text(200, 40), row]);
        assert_eq!(of_item[0], Found { judged: true, overlap: 1.0, row: Some(1), jaccard: 1.0 });
        assert!(of_item[0].near_duplicate() && of_item[0].contaminated());
        assert_eq!(of_item[1], Found { judged: true, ..Found::default() });
        assert!(!of_item[1].contaminated());
    }
}

#[test]
fn thirteen_words_in_common_overlap_and_twelve_do_not() {
    let item = text(0, 40);
    for (count, overlap) in [(13, 1.0 / 28.0), (14, 2.0 / 28.0), (12, 0.0)] {
        let row = format!("{} {} {}", text(100, 30), text(10, count), text(200, 30));
        let of_item = found(std::slice::from_ref(&item), &[text(300, 50), row])[0];
        assert_eq!(of_item.overlap, overlap, "{count}");
        assert_eq!((of_item.contaminated(), of_item.near_duplicate()), (count > 12, false));
        assert_eq!(of_item.row, (count > 12).then_some(1));
    }
}

#[test]
fn n_grams_of_several_rows_count_together_and_once() {
    let item = text(0, 40);
    let rows = [text(0, 13), text(0, 13), format!("{} {}", text(5, 15), text(20, 3)), text(100, 20)];
    let of_item = found(&[item], &rows)[0];
    // 13-grams that begin at word 0, and at words 5 to 10: 18 words.
    assert_eq!(of_item.overlap, 7.0 / 28.0);
    assert_eq!(of_item.row, Some(2), "the row with the most of them");
}

#[test]
fn short_items_are_searched_for_as_a_whole() {
    let row = format!("{} {} {}", text(100, 5), text(0, 9), text(200, 5));
    for (item, judged, overlap) in [
        (text(0, 9), true, 1.0),
        (text(0, 5), true, 1.0),
        (text(0, 4), false, 0.0),
        (format!("{} other", text(0, 9)), true, 0.0),
        (String::new(), false, 0.0),
    ] {
        let of_item = found(&[item], std::slice::from_ref(&row))[0];
        assert_eq!((of_item.judged, of_item.overlap), (judged, overlap));
    }
}

#[test]
fn the_template_that_items_share_does_not_count() {
    let template = text(1000, 20);
    let items: Vec<String> = (0..4).map(|i| format!("{template} {}", text(30 * i, 20))).collect();
    let rows = [format!("{template} {}", text(500, 20)), format!("{template} {}", text(30, 20))];
    let of_items = found(&items, &rows);
    assert_eq!(of_items[0], Found { judged: true, ..Found::default() });
    assert_eq!(of_items[1].overlap, 1.0);
    assert_eq!(of_items[1].row, Some(1));
    // Nor with a few words that follow it; and what is left of an item may be short.
    let follows = |text: &str| format!("{template} {text}");
    let items = ["the cell is a unit of life", "the gene", "the cell", "it is"].map(follows);
    let row = format!("{template} the cell is a unit of life");
    let of_items = found(&items, &[row]);
    assert_eq!(
        of_items.iter().map(|of| (of.judged, of.overlap)).collect::<Vec<_>>(),
        [(true, 1.0), (false, 0.0), (false, 0.0), (false, 0.0)]
    );
    // A near duplicate has the template too, and its border with the rest.
    let items: Vec<String> = (0..4).map(|i| format!("{template} {}", text(60 * i, 60))).collect();
    let of_item = found(&items, &[items[2].replace("w150 ", "another ")])[2];
    // 60 5-grams that are not the template's, of which 5 go over the word; the row has the template's 16 besides.
    assert_eq!(of_item.jaccard, 55.0 / (60.0 + 76.0 - 55.0));
    // Of two tasks each has a template of its own: what most items of one have may be an item's of the other.
    let mut of_two: Vec<(usize, String)> = items.iter().map(|item| (0, item.clone())).collect();
    of_two.push((1, template.clone()));
    let items = Items::new(&of_two, &[]);
    let index = Index::new(&items);
    let mut tally = Tally::new(&index);
    tally.add(0, &index.search(&template));
    assert_eq!(tally.finish().iter().map(|of| of.overlap).collect::<Vec<_>>(), [0.0, 0.0, 0.0, 0.0, 1.0]);
}

#[test]
fn a_text_with_one_of_sixty_words_changed_is_a_near_duplicate() {
    let item = text(0, 60);
    let changed = item.replace("w30 ", "another ");
    let of_item = found(std::slice::from_ref(&item), &[text(100, 60), changed.clone()])[0];
    // 56 5-grams, of which 5 go over the word: 51 / (56 + 56 - 51).
    assert_eq!((of_item.jaccard, of_item.row), (51.0 / 61.0, Some(1)));
    assert!(of_item.near_duplicate());
    // 13 of 48 13-grams go over it.
    assert_eq!(of_item.overlap, 35.0 / 48.0);
    let twice = changed.replace("w10 ", "again ");
    assert!(!found(&[item], &[twice])[0].near_duplicate());
}

#[test]
fn what_most_rows_begin_with_is_not_held_against_a_near_duplicate() {
    let (system, item) = (text(1000, 30), text(0, 60));
    let row = |text: String| format!("{system} {text}");
    let mut rows: Vec<String> = (0..8).map(|i| row(text(100 * (i + 1), 60))).collect();
    rows.push(row(item.clone()));
    let of_item = found(std::slice::from_ref(&item), &rows)[0];
    // 4 5-grams lie over the border.
    assert_eq!((of_item.jaccard, of_item.row), (56.0 / 60.0, Some(8)));
    // Of few rows it is not known what they have in common.
    assert!(found(&[item], &rows[6..])[0].jaccard < NEAR);
}
