use proptest::prelude::*;

use super::*;

const VLLM: &str = include_str!("../fixtures/vllm-0.32-metrics.txt");

fn read(page: &str) -> Vec<(u32, RankLoad)> {
    read_in(16, page)
}

/// Reads in blocks of so many tokens.
fn read_in(tokens: u32, page: &str) -> Vec<(u32, RankLoad)> {
    ranks(page.as_bytes(), BlockSize::new(tokens).unwrap()).into_iter().collect()
}

/// The page of an engine of which this is said, instead of that it does nothing.
fn vllm(running: &str, waiting: &str, usage: &str) -> String {
    [
        ("num_requests_running", running),
        ("num_requests_waiting", waiting),
        ("kv_cache_usage_perc", usage),
    ]
    .iter()
    .fold(VLLM.to_owned(), |page, (name, value)| {
        let line = format!("vllm:{name}{{engine=\"0\",model_name=\"smol\"}} ");
        assert!(page.contains(&line), "{name}");
        page.replace(&format!("{line}0.0"), &format!("{line}{value}"))
    })
}

#[test]
fn vllm_is_read_as_it_was_recorded() {
    let idle = RankLoad { running: 0, waiting: 0, blocks_active: 0, blocks_total: 728 };
    assert_eq!(read_in(32, VLLM), [(0, idle)]);
    let busy = RankLoad { running: 5, waiting: 2, blocks_active: 182, blocks_total: 728 };
    assert_eq!(read_in(32, &vllm("5.0", "2.0", "0.25")), [(0, busy)]);
}

#[test]
fn each_engine_of_vllm_is_a_rank() {
    let second = vllm("1.0", "0.0", "1.0").replace("engine=\"0\"", "engine=\"1\"");
    let page = vllm("5.0", "2.0", "0.5") + &second;
    let expected = [
        (0, RankLoad { running: 5, waiting: 2, blocks_active: 364, blocks_total: 728 }),
        (1, RankLoad { running: 1, waiting: 0, blocks_active: 728, blocks_total: 728 }),
    ];
    assert_eq!(read_in(32, &page), expected);
}

#[test]
fn an_older_vllm_has_one_rank_and_another_name_for_its_cache() {
    let page = "vllm:num_requests_running{model_name=\"m\"} 1.0\n\
                vllm:num_requests_waiting{model_name=\"m\"} 0.0\n\
                vllm:gpu_cache_usage_perc{model_name=\"m\"} 0.5\n\
                vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"100\"} 1.0\n";
    let load = RankLoad { running: 1, waiting: 0, blocks_active: 50, blocks_total: 100 };
    assert_eq!(read(page), [(0, load)]);
}

#[test]
fn sglang_tells_of_each_tensor_parallel_rank_and_each_priority_and_is_counted_once() {
    let of_rank = |dp: u32, tp: u32, running: u32| {
        let labels = format!("dp_rank=\"{dp}\",model_name=\"m\",tp_rank=\"{tp}\"");
        format!(
            "sglang:num_running_reqs{{{labels},priority=\"\"}} {running}.0\n\
             sglang:num_running_reqs{{{labels},priority=\"1\"}} 1.0\n\
             sglang:num_queue_reqs{{{labels}}} 3.0\n\
             sglang:token_usage{{{labels}}} 0.25\n\
             sglang:max_total_num_tokens{{{labels}}} 1605.0\n"
        )
    };
    let page = of_rank(0, 0, 4) + &of_rank(0, 1, 4) + &of_rank(1, 0, 2);
    let load = RankLoad { running: 4, waiting: 3, blocks_active: 25, blocks_total: 100 };
    assert_eq!(read(&page), [(0, load), (1, RankLoad { running: 2, ..load })]);
}

#[test]
fn tensor_rt_llm_is_read_as_text_and_as_iterations() {
    let labels = "engine_type=\"trtllm\",model_name=\"m\"";
    let text = format!(
        "trtllm_num_requests_running{{{labels}}} 4.0\n\
         trtllm_num_requests_waiting{{{labels}}} 1.0\n\
         trtllm_kv_cache_utilization{{{labels}}} 0.3\n\
         trtllm_kv_cache_used_blocks{{{labels}}} 30.0\n\
         trtllm_kv_cache_max_blocks{{{labels}}} 100.0\n"
    );
    let load = RankLoad { running: 4, waiting: 1, blocks_active: 30, blocks_total: 100 };
    assert_eq!(read(&text), [(0, load)]);
    let iterations = r#" [
        {"iter": 1, "numActiveRequests": 9, "numQueuedRequests": 9, "attentionDpRank": 0},
        {"iter": 2, "iterLatencyMS": 16.5, "numActiveRequests": 4, "numQueuedRequests": 1,
         "kvCacheStats": {"maxNumBlocks": 100, "usedNumBlocks": 30, "tokensPerBlock": 32}},
        {"iter": 2, "numActiveRequests": 1, "attentionDpRank": 1, "kvCacheStats": null}
    ]"#;
    let other = RankLoad { running: 1, ..RankLoad::default() };
    assert_eq!(read_in(32, iterations), [(0, load), (1, other)]);
    let halved = RankLoad { blocks_active: 60, blocks_total: 200, ..load };
    assert_eq!(read(iterations), [(0, halved), (1, other)]);
    let untold = iterations.replace(", \"tokensPerBlock\": 32", "");
    assert_eq!(read(&untold), [(0, load), (1, other)]);
}

#[test]
fn blocks_are_those_of_the_reports_whatever_size_the_engine_has() {
    let page = vllm("5.0", "2.0", "0.25");
    let load = |blocks_active, blocks_total| {
        [(0, RankLoad { running: 5, waiting: 2, blocks_active, blocks_total })]
    };
    assert_eq!(read_in(32, &page), load(182, 728));
    assert_eq!(read_in(16, &page), load(364, 1456));
    assert_eq!(read_in(128, &page), load(46, 182));
    let untold = page.replace(",block_size=\"32\"", "");
    assert_eq!(read_in(16, &untold), load(182, 728));
}

#[test]
fn a_cache_of_no_number_of_blocks_is_not_told() {
    for blocks in ["None", "inf", "NaN", "-1", "1e300", "4294967296"] {
        let page = vllm("5.0", "2.0", "0.25").replace("\"728\"", &format!("\"{blocks}\""));
        let load = RankLoad { running: 5, waiting: 2, blocks_active: 0, blocks_total: 0 };
        assert_eq!(read(&page), [(0, load)], "{blocks}");
    }
}

#[test]
fn a_page_that_does_not_tell_how_many_requests_there_are_tells_no_load() {
    for page in [
        "",
        "[]",
        "[{\"iter\": 1}]",
        "[{",
        "llamacpp:requests_processing 1\n",
        "vllm:num_requests_running{engine=\"0\"} 1.0\n",
        "vllm:num_requests_running 1.0\nvllm:num_requests_waiting NaN\n",
        "vllm:num_requests_running 1.0\nvllm:num_requests_waiting -1.0\n",
        "vllm:num_requests_running 1e300\nvllm:num_requests_waiting 1.0\n",
    ] {
        assert_eq!(read(page), [], "{page}");
    }
    let page = "vllm:num_requests_running 1e12\nvllm:num_requests_waiting 1.0\n";
    assert_eq!(read(page)[0].1.running, u32::MAX);
}

#[test]
fn a_page_of_very_many_ranks_takes_up_bounded_room() {
    let rank = |rank: u32| vllm("1.0", "0.0", "0.0").replace("\"0\"", &format!("\"{rank}\""));
    let page: String = (0..1_100).map(rank).collect();
    assert_eq!(read(&page).len(), RANKS_MAX);
}

proptest! {
    #[test]
    fn no_bytes_make_it_fail(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        ranks(&bytes, BlockSize::DEFAULT);
        ranks(&[b"[", &bytes[..]].concat(), BlockSize::DEFAULT);
    }

    #[test]
    fn no_change_to_a_page_makes_it_fail(
        at in 0..VLLM.len(), length in 0..40_usize, bytes in proptest::collection::vec(any::<u8>(), 0..9),
    ) {
        let mut page = VLLM.as_bytes().to_vec();
        page.splice(at..(at + length).min(VLLM.len()), bytes);
        for load in ranks(&page, BlockSize::DEFAULT).into_values() {
            prop_assert!(load.blocks_active <= load.blocks_total);
        }
    }
}
